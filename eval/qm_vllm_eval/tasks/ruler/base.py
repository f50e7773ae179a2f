"""What the tasks of RULER share: their family, the filler they use, and fitting by a count."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from qm_vllm_eval.haystacks import Piece
from qm_vllm_eval.prompt import prompt_length
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks.base import TOLERANCE, Request, Unfit

FAMILY = "ruler"
ESSAYS = ("essays",)
"""RULER's prose haystack is Paul Graham's essays, and these are."""
ESSAY_TOKENS = 40_000
"""Tokens that each half of the essays has with any tokenizer; longer prompts repeat the run."""

_NOISE = (
    "Rain fell on the roof.",
    "The kettle was warm.",
    "Nobody came to the door.",
    "A clock went on ticking.",
    "Then it was evening.",
)


def essays(request: Request) -> list[Piece]:
    """A run of sentences that is longer than the prompt may get, repeated where it must be."""
    run = replace(request, length=min(request.length, ESSAY_TOKENS)).filler()
    return run * math.ceil(request.length / ESSAY_TOKENS)


def noise(count: int) -> list[Piece]:
    """``count`` sentences that say nothing: the same five, again and again."""
    return [Piece(" ", _NOISE[i % len(_NOISE)]) for i in range(count)]


def fit_count(request: Request, make: Callable[[int], Sample]) -> Sample:
    """The sample with the most units of filler that the length allows, whole ones alone.

    Args:
        make: the whole sample with a number of units, one or more; more units give a longer
            prompt, but for a few tokens.

    Raises:
        Unfit: not even one unit fits, or a prompt is too long with one unit more, and without it
            shorter than :data:`qm_vllm_eval.tasks.base.TOLERANCE` allows.
    """
    def size(count: int) -> int:
        return prompt_length(make(count), request.tokenizer)

    low, high = 0, 1
    while size(high) <= request.length:
        if high > 4 * request.length:
            raise Unfit("more units do not make the prompt longer")
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if size(middle) <= request.length:
            low = middle
        else:
            high = middle
    if low < 1 or size(low) < request.length - TOLERANCE:
        raise Unfit("no number of units gives this length")
    return make(low)
