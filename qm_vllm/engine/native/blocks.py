"""How many KV blocks a natively delivered prompt takes, in each KV-cache group: plain arithmetic.

A group whose layers all have a sliding window needs the newest positions alone.
"""

from __future__ import annotations

from collections.abc import Sequence


def first_block(kept: int, window: int | None, block_size: int) -> int:
    """Index of the first block of K - 1 positions that the group needs."""
    return 0 if window is None else max(0, kept - window) // block_size


def own_blocks(kept: int, windows: Sequence[int | None], block_size: int) -> list[int]:
    """Blocks of the K - 1 positions that a request finds, of each group.

    Args:
        kept: K. windows: of each group, its sliding window or None.
    """
    last = -(-(kept - 1) // block_size)
    return [last - first_block(kept, window, block_size) for window in windows]


def prompt_blocks(
    tokens: int, windows: Sequence[int | None], block_size: int, in_flight_tokens: int
) -> int:
    """Blocks that vLLM needs at most while it prefills the prompt, over all groups.

    Args:
        in_flight_tokens: at most, of the steps that run at once; what is older than the window is
            let go behind them.
    """
    total = 0
    for window in windows:
        held = tokens if window is None else min(tokens, window - 1 + in_flight_tokens)
        total += -(-held // block_size) + (window is not None)
    return total


def split(blocks: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
    """The blocks of each group, of all groups' one after the other."""
    parts, start = [], 0
    for count in counts:
        parts.append(list(blocks[start : start + count]))
        start += count
    return parts
