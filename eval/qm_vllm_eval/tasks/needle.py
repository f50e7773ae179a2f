"""One fact in a long text: a number, three words, a name, or something told in passing.

The idea of the planted sentence is RULER's (Hsieh et al. 2024) and older; the fact in ordinary
prose does not stand out by its form, so a score that looks for oddities alone misses it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from qm_vllm_eval.haystacks import Piece
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import vocabulary
from qm_vllm_eval.tasks.base import Request, Task, fit, insert, join

FAMILY = "needle"


@dataclass(frozen=True)
class Needle:
    """A sentence to plant, what is asked, and how the reply begins and goes on."""

    sentence: str
    question: str
    answer_prefix: str
    target: str
    answers: tuple[str, ...]


def plant(request: Request, needle: Needle) -> Sample:
    """The needle between two sentences of prose that holds none of its answers."""
    depth = request.depth()

    def make(pieces: list[Piece]) -> Sample:
        return request.sample(
            join(insert(pieces, [needle.sentence], [depth])),
            f"\n\n{needle.question}",
            needle.target,
            needle.answers,
            answer_prefix=needle.answer_prefix,
        )

    return fit(request, request.filler(banned=needle.answers), make)


def _digits(request: Request) -> Sample:
    rng = request.rng("needle")
    key, number = rng.choice(vocabulary.nouns(request.split)), vocabulary.digits(rng)
    start = f"The secret number of the {key} is"
    return plant(
        request,
        Needle(
            f"{start} {number}.",
            f"What is the secret number of the {key}? Answer with the number.",
            start,
            f" {number}",
            (number,),
        ),
    )


def _words(request: Request) -> Sample:
    rng = request.rng("needle")
    key, *words = rng.sample(vocabulary.nouns(request.split), 4)
    start = f"The three words of the {key} are"
    listed = f"{words[0]}, {words[1]} and {words[2]}"
    return plant(
        request,
        Needle(
            f"{start} {listed}.",
            f"What are the three words of the {key}? Answer with the words.",
            start,
            f" {listed}",
            tuple(words),
        ),
    )


def _names(request: Request) -> Sample:
    rng = request.rng("needle")
    key = rng.choice(vocabulary.nouns(request.split))
    name = vocabulary.full_name(request.split, rng)
    start = f"The owner of the {key} is called"
    return plant(
        request,
        Needle(
            f"{start} {name}.",
            f"What is the full name of the owner of the {key}?",
            start,
            f" {name}",
            (name,),
        ),
    )


@dataclass(frozen=True)
class _Fact:
    """Wording of a fact; slots in braces, ``{answer}`` the one that is asked for."""

    sentence: str
    question: str
    answer_prefix: str
    kind: str  # of the answer: city, name, animal, trade, month, count


_SLOTS = {
    "season": ["spring", "summer", "autumn", "winter"],
    "relative": ["aunt", "uncle", "cousin", "neighbor"],
    "thing": ["piano", "clock", "boat", "bicycle", "carpet", "telescope"],
    "shop": ["bakery", "bookshop", "pharmacy", "restaurant"],
    "animal": ["goat", "parrot", "donkey", "tortoise", "rabbit", "pony"],
    "trade": ["carpenter", "dentist", "gardener", "tailor", "watchmaker", "plumber"],
    "month": ["February", "March", "April", "June", "August", "October"],
    "count": ["eleven", "thirteen", "fourteen", "sixteen", "seventeen", "nineteen"],
}
_FACTS = {
    "tune": (
        _Fact(
            "In the {season} of that year my {relative} {name} opened a small {shop} in {answer}.",
            "In which city did {name} open a small {shop}?",
            "{name} opened a small {shop} in",
            "city",
        ),
        _Fact(
            "Before the war the {thing} had belonged to a {answer} who lived in {city}.",
            "What was the trade of the person in {city} whom the {thing} had belonged to?",
            "The {thing} had belonged to a",
            "trade",
        ),
        _Fact(
            "When {name} was a child, the family kept a {answer} in the yard behind the {shop}.",
            "Which animal did the family of {name} keep in the yard?",
            "The family kept a",
            "animal",
        ),
        _Fact(
            "It took {name} {answer} days to travel from {city} to the coast, mostly on foot.",
            "How many days did it take {name} to travel from {city} to the coast?",
            "It took {name}",
            "count",
        ),
    ),
    "report": (
        _Fact(
            "My {relative} {name} moved to {answer} that {season} and never came back to us.",
            "Where did {name} move to?",
            "{name} moved to",
            "city",
        ),
        _Fact(
            "For many years {name} worked as a {answer} in {city}, two streets from the harbor.",
            "What did {name} work as in {city}?",
            "{name} worked as a",
            "trade",
        ),
        _Fact(
            "The old {thing} in the hall was a present that {answer} had brought from {city}.",
            "Who had brought the old {thing} from {city}?",
            "The old {thing} was brought by",
            "name",
        ),
        _Fact(
            "They were married in {city} in {answer}, and {name} played the organ in church.",
            "In which month were they married in {city}?",
            "They were married in {city} in",
            "month",
        ),
        _Fact(
            "The {shop} that {name} ran in {city} had room for {answer} guests and no more.",
            "How many guests did the {shop} of {name} in {city} have room for?",
            "The {shop} had room for",
            "count",
        ),
        _Fact(
            "Every {season} a traveling show came to {city}, and {name} once won a {answer} there.",
            "Which animal did {name} win in {city}?",
            "{name} won a",
            "animal",
        ),
    ),
}


def _drawn(kind: str, split: str, rng: random.Random) -> str:
    if kind == "city":
        return rng.choice(vocabulary.cities(split))
    if kind == "name":
        return rng.choice(vocabulary.first_names(split))
    return rng.choice(_SLOTS[kind])


def _fact(request: Request) -> Sample:
    rng, split = request.rng("needle"), request.split
    fact = _FACTS[split][request.turn % len(_FACTS[split])]
    slots = {kind: _drawn(kind, split, rng) for kind in (*_SLOTS, "city", "name")}
    answer = _drawn(fact.kind, split, rng)
    while answer == slots[fact.kind]:
        answer = _drawn(fact.kind, split, rng)
    filled = {**slots, "answer": answer}
    return plant(
        request,
        Needle(
            fact.sentence.format(**filled),
            f"{fact.question.format(**filled)} Answer in a few words.",
            fact.answer_prefix.format(**filled),
            f" {answer}",
            (answer,),
        ),
    )


TASKS = (
    Task("needle_digits", FAMILY, "all", "A number of seven digits in prose.", _digits),
    Task("needle_words", FAMILY, "all", "Three common words in prose.", _words),
    Task("needle_names", FAMILY, "all", "An invented person's full name in prose.", _names),
    Task("needle_fact", FAMILY, "all", "A fact told in passing, asked as a question.", _fact),
)
