"""RULER's frequent words: the three most frequent of coded words with a zeta distribution.

The word of rank r comes r ** -ALPHA / zeta(ALPHA) times the number of words. The first rank is
noise (dots), so those of ranks two to four are asked.
"""

from __future__ import annotations

import random
import string

from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks.base import WORDS, Request, Task, Unfit
from qm_vllm_eval.tasks.ruler.base import FAMILY, fit_count

ALPHA = 2.0
ASKED = 3
REPLY = 50
"""Tokens of a prediction, as in the paper."""
NOISE = "..."

_LETTERS = 6
_TOKENS_A_WORD = 50
"""There is one coded word for as many tokens of the prompt."""
_ZETA_TERMS = 10_000


def _coded(rng: random.Random, count: int) -> list[str]:
    """Different words of six random letters."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(string.ascii_lowercase, k=_LETTERS))] = None
    return list(found)


def counts(words: int, ranks: int) -> list[int]:
    """How often each rank comes among ``words`` words, rounded down; [ranks]."""
    zeta = sum(rank**-ALPHA for rank in range(1, _ZETA_TERMS))
    return [int(words * rank**-ALPHA / zeta) for rank in range(1, ranks + 1)]


def _frequent(request: Request) -> Sample:
    coded = _coded(request.rng("words"), max(request.length // _TOKENS_A_WORD, 2 * ASKED))
    ranked = [NOISE, *coded]
    asked = coded[:ASKED]

    def make(words: int) -> Sample:
        given = counts(words, len(ranked))
        listed = [word for word, count in zip(ranked, given, strict=True) for _ in range(count)]
        request.rng("list").shuffle(listed)
        return request.sample(
            f"The words of this text are in code.\n\n{' '.join(listed)}",
            f"\n\nWhich {ASKED} coded words come most often in the text? Dots are not words.",
            " " + ", ".join(asked),
            asked,
            answer_prefix=f"The {ASKED} coded words that come most often are",
            max_new_tokens=REPLY,
        )

    sample = fit_count(request, make)
    often = sorted(map(sample.context.split().count, coded), reverse=True)
    if often[ASKED - 1] == often[ASKED]:
        raise Unfit("too few words to tell the third most frequent from the fourth")
    return sample


TASKS = (
    Task(
        "fwe",
        FAMILY,
        "all",
        "Coded words with a zeta distribution; the three most frequent are asked.",
        _frequent,
        haystacks=(WORDS,),
    ),
)
