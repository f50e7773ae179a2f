"""Plain language modelling: how likely the next 128 tokens of the same text are."""

from __future__ import annotations

import re
from functools import lru_cache

from qm_vllm_eval.prompt import prompt_length
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks.base import TOLERANCE, Request, Task, Unfit, join
from qm_vllm_eval.tasks.recall import words_for

FAMILY = "continuation"
CONTINUED = 128
"""Tokens of the target."""


def _continuation(request: Request) -> Sample:
    return continued(request, join(request.filler()))


def continued(request: Request, text: str) -> Sample:
    """The beginning of a text at the request's length, and its next :data:`CONTINUED` tokens.

    Raises:
        Unfit: no word ends at this length.
    """
    words = list(re.finditer(r"\S+", text))
    cut = int(len(words) * request.length / request.count(text))
    for _ in range(12):
        if not 0 < cut < len(words):
            break
        sample = _sample(request, text[: words[cut - 1].end()], "")
        missing = request.length - prompt_length(sample, request.tokenizer)
        if 0 <= missing <= TOLERANCE // 2:
            return _with_target(request, words, cut)
        cut += int(missing * 0.75) - 3
    raise Unfit("no word ends at this length")


def _with_target(request: Request, words: list[re.Match[str]], cut: int) -> Sample:
    """The first cut at or a few words before ``cut`` after which words make up the target."""
    text = words[0].string
    count = lru_cache(maxsize=None)(request.count)
    for first in range(cut, max(cut - 10, 1), -1):
        end = words_for(words, first, CONTINUED, count)
        if end > 0:
            start = words[first - 1].end()
            sample = _sample(request, text[:start], text[start : words[end - 1].end()])
            if prompt_length(sample, request.tokenizer) >= request.length - TOLERANCE:
                return sample
    raise Unfit("no word ends after this many tokens")


def _sample(request: Request, context: str, target: str) -> Sample:
    return request.sample(context, "", target, (), chat=False, max_new_tokens=0)


TASKS = (
    Task(
        "continuation",
        FAMILY,
        "none",
        "The likelihood of the next 128 tokens of a text.",
        _continuation,
    ),
)
