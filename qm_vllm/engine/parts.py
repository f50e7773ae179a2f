"""A prompt that is read in parts: where these begin and end, and what each of them keeps.

It is, where the whole is longer than the model was trained for, or than the memory of jobs holds.
Each part is read over what was kept of those before it, as the answer will be, and with the
prompt's last tokens behind it, because these say what is looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from qm_vllm.compress import needs
from qm_vllm.config import QuickMergeConfig
from qm_vllm.engine.memory import most_kept
from qm_vllm.engine.messages import JobSpec

TAIL = 256
"""Last tokens of the prompt that stand behind each earlier part."""
LEAST = 2 * TAIL
"""Tokens of the shortest part that is worth what stands around it."""


def tail_tokens(config: QuickMergeConfig) -> int:
    """How many of a prompt's last tokens earlier parts are read with: none if they may not say
    what stays."""
    return TAIL if config.query_visible and "attention" in needs(config) else 0


def parted(num_tokens: int, span: int, around: int) -> tuple[int, ...] | None:
    """Bounds of as few parts as possible, all about as long.

    Args:
        num_tokens: N. span: tokens that can be read at once. around: of these, those that stand
            behind a part.

    Returns:
        0, ..., N; None where a part would be shorter than :data:`LEAST`.
    """
    room = span - around
    if room < LEAST:
        return None
    count = -(-num_tokens // room)
    return tuple(num_tokens * index // count for index in range(count + 1))


def tail_of(spec: JobSpec, index: int) -> int:
    """How many stand behind it, without a hint."""
    return tail_tokens(spec.config) if index < len(spec.parts) - 2 else 0


def longest_part(spec: JobSpec) -> int:
    """Tokens of the part of which most are read at once, with what stands behind it."""
    return max(_rows(spec))


def places_needed(spec: JobSpec) -> int:
    """Positions that the model must know for the parts: where each comes behind what was kept.

    Raises:
        ConfigError: max_kept cannot hold the protected positions.
    """
    if spec.config.positions == "source":
        return spec.rows
    before = [0, *accumulate(budgets(spec))]
    return max(kept + rows for kept, rows in zip(before, _rows(spec), strict=False))


def _rows(spec: JobSpec) -> list[int]:
    return [
        stop - start + tail_of(spec, index) + len(spec.hint)
        for index, (start, stop) in enumerate(pairwise(spec.parts))
    ]


def budgets(spec: JobSpec) -> list[int]:
    """How many tokens each part keeps.

    Raises:
        ConfigError: max_kept cannot hold the protected positions.
    """
    bounds = list(pairwise(spec.parts))
    if spec.kept is not None:
        return [sum(start <= at < stop for at in spec.kept) for start, stop in bounds]
    protected = spec.protected()
    count, floor = len(spec.token_ids), int(protected.sum())
    return shares(
        most_kept(spec.config, count, floor, spec.block_size), spec.parts,
        [int(protected[start:stop].sum()) for start, stop in bounds],
    )


def part_of(spec: JobSpec, index: int) -> JobSpec:
    """What is read of one part, as a job of its own."""
    start, stop = spec.parts[index], spec.parts[index + 1]
    ids, tail = spec.token_ids, len(spec.token_ids) - tail_of(spec, index)
    return replace(
        spec, token_ids=[*ids[start:stop], *ids[tail:]], parts=(), kept=None,
        special_positions=[], turns=(),
    )


def shares(total: int, parts: Sequence[int], protected: Sequence[int]) -> list[int]:
    """How many tokens each part keeps of ``total``: what it protects, and its share of the rest.

    Args:
        total: K. parts: bounds. protected: tokens that stay, of each part.

    Returns:
        at least one for each part; their sum is K, if that is enough.
    """
    least = [max(1, count) for count in protected]
    free = [stop - start - floor for (start, stop), floor in zip(pairwise(parts), least,
                                                                 strict=True)]
    room = sum(free)
    rest = min(max(0, total - sum(least)), room)
    kept, given, seen = [], 0, 0
    for floor, own in zip(least, free, strict=True):
        seen += own
        upto = rest * seen // room if room else 0
        kept.append(floor + upto - given)
        given = upto
    return kept
