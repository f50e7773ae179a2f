"""Verbatim recall: the prompt's end quotes 24 tokens of the text, the target is what follows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from qm_vllm_eval.haystacks import Piece
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks.base import Request, Task, Unfit, fit, join

FAMILY = "recall"
QUOTED = 24
"""Tokens of the quotation."""
RECALLED = 48
"""Tokens of the target."""


def words_for(
    words: Sequence[re.Match[str]], first: int, tokens: int, count: Callable[[str], int]
) -> int:
    """Index behind the last word such that the words from ``first`` on have ``tokens`` tokens.

    A word is counted with the white space before it. -1 if no run of words fits exactly.
    """
    if not 0 < first < len(words):
        return -1
    text = words[first].string
    total, stop = 0, first
    while total < tokens and stop < len(words):
        total += count(text[words[stop - 1].end() : words[stop].end()])
        stop += 1
    if total != tokens:
        return -1
    whole = text[words[first - 1].end() : words[stop - 1].end()]
    return stop if count(whole) == tokens else -1


def _recall(request: Request) -> Sample:
    depth = 0.03 + 0.87 * request.depth()
    filler = request.filler()
    count = lru_cache(maxsize=None)(request.count)

    def make(pieces: list[Piece]) -> Sample:
        context = join(pieces)
        words = list(re.finditer(r"\S+", context))
        middle = int(depth * len(words))
        near = sorted(range(1, len(words) - QUOTED // 2), key=lambda i: abs(i - middle))
        for first in near[:400]:
            stop = words_for(words, first, QUOTED, count)
            end = words_for(words, stop, RECALLED, count) if stop > 0 else -1
            if end < 0:
                continue
            quote = context[words[first].start() : words[stop - 1].end()]
            target = context[words[stop - 1].end() : words[end - 1].end()]
            if "\n" in quote + target or context.count(quote) != 1:
                continue
            return request.sample(
                context,
                f"\n\n{quote}",
                target,
                [target.strip()],
                chat=False,
                max_new_tokens=0,
            )
        raise Unfit("no quotation of this many tokens")

    return fit(request, filler, make)


TASKS = (
    Task(
        "recall",
        FAMILY,
        "tokens",
        "The end quotes 24 tokens of the text; the next 48 are the target.",
        _recall,
    ),
)
