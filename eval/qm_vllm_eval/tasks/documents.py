"""Samples of published documents: each document once, whole or cut to the length in a stated way.

A document that is shorter than the length is taken whole if it fills at least half of it. A longer
one is left out, or cut: to a window around the place that tells the answer, to its end, to its
beginning, or by leaving out parts that do not matter. Task by task docs/quality.md says which.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from qm_vllm_eval.prompt import prompt_length
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import data
from qm_vllm_eval.tasks.base import TOLERANCE, Exhausted, Request, Unfit
from qm_vllm_eval.tasks.mentions import mention, words_of

Candidate = TypeVar("Candidate")

TARGET = 96
"""Tokens of a target, at most: the first whole words of a long answer."""
MOST = 12
"""Characters a token that are looked at: more than any tokenizer's mean."""
_AIM, _STEPS = 8, 24


@dataclass
class _Taken:
    """The samples of one task, length, split and tokenizer, as far as they were asked for."""

    candidates: list[Any] | None = None
    samples: list[Sample] = field(default_factory=list)
    tried: int = 0


def take(
    request: Request,
    candidates: Callable[[], Sequence[Candidate]],
    make: Callable[[Request, Candidate], Sample],
) -> Sample:
    """The sample of the candidate that is number ``request.index`` of those that fit.

    Args:
        candidates: in the order in which they are to be used, no document of the other split
            among them; called once a task, length, split and tokenizer.
        make: the sample of one candidate, or :class:`Unfit`.

    Raises:
        Exhausted: fewer candidates fit.
    """
    taken = _taken(
        data.data_folder(), request.task.name, request.length, request.split, request.tokenizer
    )
    if taken.candidates is None:
        taken.candidates = list(candidates())
    while len(taken.samples) <= request.index:
        if taken.tried == len(taken.candidates):
            raise Exhausted(
                f"{request.task.name} has {len(taken.samples)} samples of {request.length} tokens "
                f"in the split {request.split!r}"
            )
        number = len(taken.samples)
        candidate = taken.candidates[taken.tried]
        taken.tried += 1
        try:
            taken.samples.append(make(replace(request, index=number, turn=number), candidate))
        except Unfit:
            continue
    return taken.samples[request.index]


@lru_cache(maxsize=128)
def _taken(folder: Path, task: str, length: int, split: str, tokenizer: Any) -> _Taken:
    return _Taken()


def in_turns(groups: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """The first of every group, then the second of every group: documents before questions."""
    absent = object()
    rounds = zip_longest(*groups, fillvalue=absent)
    return [one for turn in rounds for one in turn if one is not absent]  # type: ignore[misc]


def longest(
    request: Request, make: Callable[[int], Sample], most: int, fewest: int = 0
) -> Sample:
    """The sample with as many units as the length allows.

    Args:
        make: the sample with some number of units; more units are more tokens.
        most: units of the whole document. fewest: units that have to stay.

    Raises:
        Unfit: the fewest are too many, the whole document fills less than half of the length,
            or no number of units comes within :data:`TOLERANCE` tokens of the length.
    """
    low = min(fewest, most)
    if low > request.length:
        raise Unfit("what has to stay has more words than the length has tokens")
    sample = make(low)
    tokens = prompt_length(sample, request.tokenizer)
    if tokens > request.length:
        raise Unfit("what has to stay is longer than the length")
    over, each = most + 1, 1.5  # units that are too many; tokens a unit, as far as is known
    for step in range(_STEPS):
        if low + 1 >= over or request.length - tokens <= _AIM:
            break
        guess = low + int((request.length - _AIM // 2 - tokens) / each)
        if step % 4 == 3:
            guess = (low + over) // 2
        units = min(max(guess, low + 1), over - 1)
        tried = make(units)
        count = prompt_length(tried, request.tokenizer)
        each = max((count - tokens) / (units - low), 0.25)
        if count <= request.length:
            low, tokens, sample = units, count, tried
        else:
            over = units
    enough = request.length / 2 if low == most else request.length - TOLERANCE
    if tokens < enough:
        raise Unfit("the document is too short, or cannot be cut to this length")
    return sample


def whole(request: Request, text: str, make: Callable[[str], Sample]) -> Sample:
    """The sample over a document that is not cut.

    Raises:
        Unfit: it is longer than the length, or fills less than half of it.
    """
    if len(text) > MOST * request.length:
        raise Unfit("the document is longer than the length")
    return longest(request, lambda _: make(text), 1, 1)


def window(
    request: Request, words: Sequence[str], first: int, last: int,
    make: Callable[[int, int], Sample],
) -> Sample:
    """The sample over a window of words that holds some of them, at a drawn depth.

    Args:
        words: of the document, each with the space behind it.
        first, last: the words that have to stay, ``last`` excluded.
        make: the sample over words [start, end).

    Raises:
        Unfit: as :func:`longest`.
    """
    depth, kept = request.depth(), last - first

    def cut(count: int) -> Sample:
        start = min(max(0, first - round(depth * (count - kept))), len(words) - count)
        return make(start, start + count)

    return longest(request, cut, len(words), kept)


def around(
    request: Request, text: str, question: str, answers: Sequence[str],
    make: Callable[[str], Sample],
) -> Sample:
    """A window around the place that says an answer; the whole document if none does.

    Raises:
        Unfit: as :func:`longest`.
    """
    words = words_of(text)
    place = mention(words, question, answers)
    if place is None:
        return whole(request, text, make)
    return window(
        request, words, *place, lambda start, end: make("".join(words[start:end]).strip())
    )


def with_filler(
    request: Request, parts: Sequence[str], keep: Collection[int], make: Callable[[str], Sample]
) -> Sample:
    """Some parts whole, others between them as far as there is room, in the published order.

    The others come in a drawn order; the last of them is cut at its end.

    Args:
        parts: joined by empty lines. keep: numbers of the parts that have to stay.

    Raises:
        Unfit: as :func:`longest`.
    """
    others = [number for number in range(len(parts)) if number not in keep]
    others = request.rng("filler").sample(others, len(others))
    words = {number: words_of(parts[number]) for number in others}

    def fill(count: int) -> Sample:
        chosen = {number: parts[number] for number in keep}
        for number in others:
            own = words[number][:count]
            count -= len(own)
            if own:
                chosen[number] = "".join(own)
        return make("\n\n".join(chosen[number].strip() for number in sorted(chosen)))

    return longest(request, fill, sum(map(len, words.values())))


def ending(
    request: Request, units: Sequence[str], make: Callable[[str], Sample], fewest: int = 0
) -> Sample:
    """The last units of a document, as many as there is room for.

    Raises:
        Unfit: as :func:`longest`.
    """
    return longest(
        request, lambda count: make("".join(units[len(units) - count :])), len(units), fewest
    )


def target_of(request: Request, text: str) -> str:
    """The first whole words of a text, up to :data:`TARGET` tokens, with a space in front."""
    words = text.split()
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        if request.count(" " + " ".join(words[:middle])) <= TARGET:
            low = middle
        else:
            high = middle - 1
    return " " + " ".join(words[:low])
