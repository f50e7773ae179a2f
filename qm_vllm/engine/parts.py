"""A prompt that is read in parts: where these begin and end, and what each of them keeps.

It is, where the whole is longer than the model was trained for, or than the memory of jobs holds.
Each part is read with the prompt's first tokens before it, because models leave attention there
that belongs nowhere (Xiao et al. 2023, "Efficient Streaming Language Models with Attention
Sinks"), and with the prompt's last ones behind it, because these say what is looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from qm_vllm.compress import needs
from qm_vllm.config import QuickMergeConfig
from qm_vllm.engine.messages import JobSpec

HEAD = 4
"""First tokens of the prompt that stand before each later part."""
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
            before and behind a part.

    Returns:
        0, ..., N; None where a part would be shorter than :data:`LEAST`.
    """
    room = span - around
    if room < LEAST:
        return None
    count = -(-num_tokens // room)
    return tuple(num_tokens * index // count for index in range(count + 1))


def head_of(spec: JobSpec, index: int) -> int:
    """How many tokens stand before a part."""
    return HEAD if index else 0


def tail_of(spec: JobSpec, index: int) -> int:
    """How many stand behind it, without a hint."""
    return tail_tokens(spec.config) if index < len(spec.parts) - 2 else 0


def longest_part(spec: JobSpec) -> int:
    """Tokens of the part of which most are read at once, with what stands around it."""
    return len(spec.hint) + max(
        head_of(spec, index) + stop - start + tail_of(spec, index)
        for index, (start, stop) in enumerate(pairwise(spec.parts))
    )


def part_of(spec: JobSpec, index: int) -> JobSpec:
    """What is read of one part, as a job of its own."""
    start, stop = spec.parts[index], spec.parts[index + 1]
    ids, tail = spec.token_ids, len(spec.token_ids) - tail_of(spec, index)
    return replace(
        spec, token_ids=[*ids[: head_of(spec, index)], *ids[start:stop], *ids[tail:]], parts=(),
        kept=None, special_positions=[], turns=(),
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
