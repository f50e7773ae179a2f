"""RULER's eight needle tasks: notes of a value for a key, and the values of some keys asked.

Single needles lie in noise or essays; "multikey" has notes of other keys, up to a haystack of
nothing else; "multivalue" notes four values for one key, "multiquery" asks four keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qm_vllm_eval.haystacks import Piece
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks.base import WORDS, Request, Task, fit, insert, join
from qm_vllm_eval.tasks.ruler import keys
from qm_vllm_eval.tasks.ruler.base import ESSAYS, FAMILY, essays, fit_count, noise

MANY = 4
"""Keys of multikey_1 and multiquery, values of multivalue."""
REPLY = 128
"""Tokens of a prediction, as in the paper."""
LINE = 6
"""A note has more tokens with any tokenizer of words, bytes or anything between."""


@dataclass(frozen=True)
class Asked:
    """What is asked: the keys and all their values, which are ``kind`` ("number" or "code")."""

    kind: str
    keys: Sequence[str]
    values: Sequence[str]

    def sample(self, request: Request, text: str) -> Sample:
        """The sample over a text that holds the notes."""
        one = len(self.values) == 1
        noun = self.kind if one else f"{self.kind}s"
        keys = _listed(self.keys)
        return request.sample(
            f"This text notes {self.kind}s for some names. Remember them: what comes after the "
            f"text asks for them.\n\n{text}",
            f"\n\nWhich {noun} does the text note for {keys}?"
            + ("" if one else " Give all of them."),
            f" {_listed(self.values)}",
            self.values,
            answer_prefix=f"The {noun} noted for {keys} {'is' if one else 'are'}",
            max_new_tokens=REPLY,
        )


def _listed(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def note(kind: str, key: str, value: str) -> str:
    """The needle."""
    return f"A {kind} noted for {key} is {value}."


def _single_noise(request: Request) -> Sample:
    rng, depth = request.rng("needle"), request.depth()
    key, value = keys.words(rng, request.split, 1)[0], keys.numbers(rng, 1)[0]
    asked = Asked("number", [key], [value])

    def make(count: int) -> Sample:
        pieces = insert(noise(count), [note("number", key, value)], [depth])
        return asked.sample(request, join(pieces))

    return fit_count(request, make)


def _in_essays(
    request: Request, notes: Sequence[str], asked: Asked, depths: Sequence[float]
) -> Sample:
    def make(pieces: list[Piece]) -> Sample:
        return asked.sample(request, join(insert(pieces, notes, depths)))

    return fit(request, essays(request), make)


def _single(request: Request, kind: str) -> Sample:
    rng = request.rng("needle")
    key = keys.words(rng, request.split, 1)[0]
    value = (keys.numbers if kind == "number" else keys.uuids)(rng, 1)[0]
    asked = Asked(kind, [key], [value])
    return _in_essays(request, [note(kind, key, value)], asked, [request.depth()])


def _multikey(request: Request) -> Sample:
    names, values, notes = _four(request)
    place = int(request.depth() * MANY)  # evenly spread over the indices, as for one needle
    asked = Asked("number", [names[place]], [values[place]])
    return _in_essays(request, notes, asked, request.depths(MANY))


def _multivalue(request: Request) -> Sample:
    names, values, _ = _four(request)
    notes = [note("number", names[0], value) for value in values]
    return _in_essays(request, notes, Asked("number", names[:1], values), request.depths(MANY))


def _multiquery(request: Request) -> Sample:
    names, values, notes = _four(request)
    order = request.rng("asked").sample(range(MANY), MANY)
    asked = Asked("number", [names[i] for i in order], [values[i] for i in order])
    return _in_essays(request, notes, asked, request.depths(MANY))


def _four(request: Request) -> tuple[list[str], list[str], list[str]]:
    rng = request.rng("needle")
    names, values = keys.words(rng, request.split, MANY), keys.numbers(rng, MANY)
    return names, values, [note("number", *pair) for pair in zip(names, values, strict=True)]


def _among_notes(request: Request, kind: str) -> Sample:
    """A haystack of notes alone, one a line, of which one is asked."""
    rng, depth, most = request.rng("needle"), request.depth(), request.length // LINE + 1
    if kind == "number":
        names, values = keys.words(rng, request.split, most), keys.numbers(rng, most)
    else:
        names, values = keys.uuids(rng, most), keys.uuids(rng, most)
    asked = Asked(kind, names[:1], values[:1])
    notes = [note(kind, *pair) for pair in zip(names, values, strict=True)]

    def make(count: int) -> Sample:
        others = notes[1 : count + 1]
        place = round(depth * len(others))
        return asked.sample(request, "\n".join([*others[:place], notes[0], *others[place:]]))

    return fit_count(request, make)


def _task(
    name: str, description: str, build: Callable[[Request], Sample], haystacks: tuple[str, ...],
    minimum: int = 320,
) -> Task:
    return Task(f"niah_{name}", FAMILY, "all", description, build, haystacks, minimum)


TASKS = (
    _task("single_1", "A number in repeated noise.", _single_noise, (WORDS,)),
    _task("single_2", "A number in essays.", lambda r: _single(r, "number"), ESSAYS),
    _task("single_3", "A UUID in essays.", lambda r: _single(r, "code"), ESSAYS),
    _task("multikey_1", "Four keys with numbers in essays, one asked.", _multikey, ESSAYS),
    _task(
        "multikey_2", "A number in a haystack of such notes.",
        lambda r: _among_notes(r, "number"), (WORDS,),
    ),
    _task(
        "multikey_3", "A UUID of a UUID in a haystack of such notes.",
        lambda r: _among_notes(r, "code"), (WORDS,), minimum=512,
    ),
    _task("multivalue", "Four numbers of one key in essays, all asked.", _multivalue, ESSAYS),
    _task("multiquery", "Four keys with numbers in essays, all asked.", _multiquery, ESSAYS),
)
