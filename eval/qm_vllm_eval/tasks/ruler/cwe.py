"""RULER's common words: ten words far more often than all others in a numbered list.

From 4,096 tokens on the common words come 30 times and the others 3 times, behind a solved example
with 10 and 3 repetitions; shorter prompts have 6 and 1, and 3 and 1. The paper's words are those of
a list of English nouns, adjectives and verbs; here they are words of the essays, and where these
are not enough, two of them with a hyphen.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from qm_vllm_eval.haystacks import text_of
from qm_vllm_eval.sample import SPLITS, Sample
from qm_vllm_eval.tasks.base import Request, Task
from qm_vllm_eval.tasks.ruler.base import ESSAYS, FAMILY, fit_count

COMMON = 10
REPLY = 120
"""Tokens of a prediction, as in the paper."""
WHOLE = 4096
"""Tokens of the shortest prompt that has the paper's repetitions."""

_WORD = re.compile(r"(?<![\w'’.@/-])[a-z]{4,10}(?![\w'’@/-])")
_INTRODUCTION = "Some words come again and again in this numbered list.\n\n"
_QUESTION = f"\n\nWhich {COMMON} words come most often in the list?"
_PREFIX = f"The {COMMON} words that come most often are:"


@dataclass(frozen=True)
class Repeats:
    """How often words come in the list and in the example, and the example's other words."""

    common: int
    others: int
    shown_common: int
    shown_others: int
    shown: int


LONG = Repeats(common=30, others=3, shown_common=10, shown_others=3, shown=30)
SHORT = Repeats(common=6, others=1, shown_common=3, shown_others=1, shown=10)


@lru_cache(maxsize=2)
def _words(split: str) -> tuple[str, ...]:
    """Every other one of all the words of the essays, in alphabetic order."""
    every = {word for half in SPLITS for word in _WORD.findall(text_of(ESSAYS[0], half))}
    return tuple(sorted(every)[SPLITS.index(split) :: len(SPLITS)])


def _drawn(request: Request, count: int) -> tuple[list[str], list[str]]:
    """The common words, and ``count`` or more others, all different, in random order.

    No common word is a part of another word: the score looks for them anywhere in a text.
    """
    rng = request.rng("words")
    words = rng.sample(_words(request.split), len(_words(request.split)))
    every = "\n".join(words)
    common = list(islice((word for word in words if every.count(word) == 1), COMMON))
    single = [word for word in words if word not in common]
    pairs: dict[str, None] = {}
    while len(single) + len(pairs) < count:
        pairs["-".join(rng.sample(single, 2))] = None
    return common, [*single, *pairs]


def _numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def _list(rng: random.Random, common: list[str], often: int, others: list[str], seldom: int
          ) -> tuple[str, list[str]]:
    """The numbered list, and its common words in the order in which they first come."""
    listed = common * often + others * seldom
    rng.shuffle(listed)
    return _numbered(listed), sorted(common, key=listed.index)


def _common(request: Request) -> Sample:
    repeats = LONG if request.length >= WHOLE else SHORT
    # An entry has two tokens or more: its number and its word.
    most = request.length // (2 * repeats.others)
    common, rest = _drawn(request, COMMON + repeats.shown + most)
    shown, rest = rest[:COMMON], rest[COMMON:]
    text, answer = _list(
        request.rng("example"), shown, repeats.shown_common, rest[: repeats.shown],
        repeats.shown_others,
    )
    others = rest[repeats.shown :]
    example = f"{_INTRODUCTION}{text}{_QUESTION} {_PREFIX} {_numbered(answer)}\n\n"

    def make(count: int) -> Sample:
        text, answer = _list(
            request.rng("list"), common, repeats.common, others[:count], repeats.others
        )
        return request.sample(
            f"{example}{_INTRODUCTION}{text}", _QUESTION, f" {_numbered(answer)}", answer,
            answer_prefix=_PREFIX, max_new_tokens=REPLY,
        )

    return fit_count(request, make)


TASKS = (
    Task(
        "cwe",
        FAMILY,
        "all",
        "A numbered list in which ten words come far more often than the others.",
        _common,
        haystacks=ESSAYS,
        minimum=896,
    ),
)
