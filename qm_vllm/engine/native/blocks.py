"""How many KV blocks a natively delivered prompt takes, in each KV-cache group: plain arithmetic.

A group whose layers all have a sliding window needs the newest positions alone, and one whose
layers keep fewer tokens than others as many positions less: the first ones are nobody's there.
"""

from __future__ import annotations

from collections.abc import Sequence

from qm_vllm.compress import layer_sizes


def first_block(kept: int, window: int | None, block_size: int, own: int | None = None) -> int:
    """Index of the first block of K - 1 positions that the group needs.

    Args:
        own: positions that its layers keep, the last one counted; None: K.
    """
    if window is None:
        return 0 if own is None else (kept - own) // block_size
    return max(0, kept - window) // block_size


def first_blocks(
    kept: int, windows: Sequence[int | None], block_size: int, own: Sequence[int] = ()
) -> list[int]:
    """:func:`first_block` of each group.

    Args:
        kept: K. windows: of each group, its sliding window or None.
        own: of each group, what its layers keep; () where all keep K.
    """
    return [
        first_block(kept, window, block_size, own[group] if own else None)
        for group, window in enumerate(windows)
    ]


def own_blocks(
    kept: int, windows: Sequence[int | None], block_size: int, own: Sequence[int] = ()
) -> list[int]:
    """Blocks of the K - 1 positions that a request finds, of each group.

    Args:
        kept, windows, own: as of :func:`first_blocks`.
    """
    last = -(-(kept - 1) // block_size)
    return [last - first for first in first_blocks(kept, windows, block_size, own)]


def group_sizes(
    kept: int, tokens: int, protected: int, block_size: int, keep_less: Sequence[bool],
    share: float,
) -> tuple[int, ...]:
    """How many tokens the layers of each KV-cache group keep; () where all keep K.

    Args:
        kept: K, in the mean. tokens: N. protected: positions that all keep.
        keep_less: of each group, whether its layers keep less than others. Groups have as many
            layers.
        share: of all entries, what the layers that look things up get.
    """
    less = sum(keep_less)
    if not less or less == len(keep_less) or kept >= tokens:
        return ()
    # One block at least is found in each group: that is how vLLM sees that a prompt is there.
    large, small = layer_sizes(
        kept, tokens, max(protected, block_size + 1), less // (len(keep_less) - less), share,
        block_size,
    )
    return () if large == small else tuple(small if one else large for one in keep_less)


def widest(share: float, groups: int) -> float:
    """Of K, what a layer keeps at most, where one of so many groups gets this share of all."""
    return max(1.0, share * groups)


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
