"""RULER's variable tracking: one chain of four hops in noise, and one solved example before it."""

from __future__ import annotations

import random
import string

from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import vocabulary
from qm_vllm_eval.tasks.base import WORDS, Request, Task, insert, join
from qm_vllm_eval.tasks.ruler.base import FAMILY, fit_count, noise
from qm_vllm_eval.tasks.variable_tracking import chain

HOPS = 4
REPLY = 30
"""Tokens of a prediction, as in the paper."""

_EXAMPLE_NOISE = 20
_LETTERS = 5
_INTRODUCTION = (
    "Variables get values in this text, some of them from another variable. Keep track of what "
    "each of them holds.\n\n"
)


def _names(rng: random.Random, count: int) -> list[str]:
    """Different names of five capital letters."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(string.ascii_uppercase, k=_LETTERS))] = None
    return list(found)


def _question(value: str) -> str:
    return (
        f"\n\nWhich variables hold the value {value}, given directly or by another variable? "
        "Name all of them."
    )


def _prefix(value: str) -> str:
    return f"The {HOPS + 1} variables that hold {value} are"


def _tracking(request: Request) -> Sample:
    rng = request.rng("chain")
    names, value = _names(rng, 2 * (HOPS + 1)), vocabulary.digits(rng, _LETTERS)
    shown_value = vocabulary.digits(rng, _LETTERS)
    while shown_value == value:
        shown_value = vocabulary.digits(rng, _LETTERS)
    wanted, shown = names[: HOPS + 1], names[HOPS + 1 :]
    depths, shown_depths = request.depths(HOPS + 1), sorted(rng.random() for _ in shown)
    example = (
        _INTRODUCTION
        + join(insert(noise(_EXAMPLE_NOISE), chain(shown, shown_value), shown_depths))
        + f"{_question(shown_value)} {_prefix(shown_value)} {', '.join(shown)}.\n\n"
    )

    def make(count: int) -> Sample:
        text = join(insert(noise(count), chain(wanted, value), depths))
        return request.sample(
            example + _INTRODUCTION + text, _question(value), " " + ", ".join(wanted), wanted,
            answer_prefix=_prefix(value), max_new_tokens=REPLY,
        )

    return fit_count(request, make)


TASKS = (
    Task(
        "vt",
        FAMILY,
        "all",
        "A chain of four assignments in repeated noise; all its five variables are asked.",
        _tracking,
        haystacks=(WORDS,),
        minimum=640,
    ),
)
