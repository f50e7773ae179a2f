"""Questions about real texts: the passage with the answer stands in other prose of its kind.

The questions are this project's own (``questions.json``). An item names a haystack, a split, a
short snippet that finds the evidence in the text, the question and its answers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from qm_vllm_eval.haystacks import HaystackError, Piece, documents, pieces_of
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks.base import Request, Task, fit, join

FAMILY = "qa"
QUESTIONS = Path(__file__).with_name("questions.json")
FEWEST, MOST = 60, 200
"""Tokens of an evidence passage; it has more only where one sentence does."""
REPLY = 24
"""Tokens of a prediction: small models answer in a sentence, however they are asked."""


@dataclass(frozen=True)
class Item:
    """One question. ``marker`` is found word for word in a sentence of the evidence."""

    haystack: str
    split: str
    marker: str
    question: str
    answers: tuple[str, ...]


@lru_cache(maxsize=1)
def items() -> tuple[Item, ...]:
    """Every question of the file, in its order."""
    raw = json.loads(QUESTIONS.read_text(encoding="utf-8"))
    return tuple(Item(**{**entry, "answers": tuple(entry["answers"])}) for entry in raw)


@lru_cache(maxsize=512)
def locate(item: Item) -> tuple[int, int]:
    """Number of the document and of the sentence that holds the item's marker.

    Raises:
        HaystackError: the texts on this machine do not hold it, or are missing.
    """
    for number, document in enumerate(documents(item.haystack, item.split)):
        if item.marker not in document.text:
            continue
        for place, piece in enumerate(pieces_of(item.haystack, item.split, number)):
            if item.marker in piece.text:
                return number, place
    raise HaystackError(
        f"the {item.split} texts of {item.haystack} do not hold {item.marker!r}; they are "
        "another edition than the one the questions were written for"
    )


def evidence(item: Item, request: Request, most: int = MOST) -> list[Piece]:
    """The sentence with the marker and its neighbours: 60 tokens or more, at most ``most``."""
    number, place = locate(item)
    pieces = pieces_of(item.haystack, item.split, number)
    low, high = place, place + 1
    size = request.count(pieces[place].text)
    # Sentences before and after in turn, as long as they fit.
    while size < FEWEST:
        grown = False
        for at in (low - 1, high):
            if not 0 <= at < len(pieces):
                continue
            more = request.count(pieces[at].joiner + pieces[at].text)
            if size + more > most:
                continue
            size += more
            low, high = min(low, at), max(high, at + 1)
            grown = True
            if size >= FEWEST:
                break
        if not grown:
            break
    return [Piece("\n\n", pieces[low].text), *pieces[low + 1 : high]]


def _answer(request: Request) -> Sample:
    fitting = _fitting(request)
    item = fitting[request.turn % len(fitting)]  # every item once, then again in other filler
    passage = evidence(item, request, min(MOST, request.length // 2))
    name = documents(item.haystack, item.split)[locate(item)[0]].name
    filler = request.filler(exclude={name}, banned=item.answers)
    depth = request.depth()

    def make(pieces: list[Piece]) -> Sample:
        place = round(depth * len(pieces))
        behind = pieces[place:]
        if behind:
            behind = [Piece("\n\n", behind[0].text), *behind[1:]]
        return request.sample(
            join([*pieces[:place], *passage, *behind]),
            f"\n\nQuestion: {item.question} Answer in a few words.",
            f" {item.answers[0]}",
            item.answers,
            answer_prefix="Answer:",
            max_new_tokens=REPLY,
        )

    return fit(request, filler, make)


def _fitting(request: Request) -> Sequence[Item]:
    return [
        item
        for item in items()
        if item.haystack == request.haystack and item.split == request.split
    ]


TASKS = (
    Task(
        "question_answering",
        FAMILY,
        "any",
        "A question about a passage of a real text, hidden in other texts of its kind.",
        _answer,
    ),
)
