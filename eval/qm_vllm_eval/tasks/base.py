"""What a task is, and how its context is brought to the length that was asked for."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from qm_vllm_eval.haystacks import Piece, passage
from qm_vllm_eval.prompt import prompt_length
from qm_vllm_eval.sample import Sample, sample_id

TOLERANCE = 40
"""A prompt has between ``length - TOLERANCE`` and ``length`` tokens."""
WORDS = "words"
"""Name of the haystack of tasks whose context is a list of words, not prose."""
DATA = "data"
"""Name of the haystack of tasks that are made of published data; see :mod:`.data`."""

_AIM = 6  # tokens below the length that a new attempt aims at
_SPARE = 160  # tokens of filler beyond the length, so that an attempt can grow
_ATTEMPTS = 16
_GOLDEN = (math.sqrt(5) - 1) / 2


class UnknownTask(ValueError):
    """No such task in the registry; the sentence lists those there are."""


class Exhausted(ValueError):
    """A task of published documents has no sample of this number at this length."""


class Unfit(Exception):
    """This draw of the filler gives no sample (no fitting sentence, say): draw again."""


@dataclass(frozen=True)
class Request:
    """One sample that is to be built.

    Attributes:
        haystack: name of the prose to use, or :data:`WORDS` or :data:`DATA`.
        turn: how often the haystack has been used before by lower indices.
        draw: number of the attempt; changes every random choice.
    """

    task: Task
    length: int
    split: str
    index: int
    tokenizer: Any
    haystack: str
    turn: int = 0
    draw: int = 0

    def rng(self, label: str) -> random.Random:
        """A fresh generator for one purpose: the same in every process."""
        parts = (self.task.name, self.length, self.split, self.index, self.draw, label)
        digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
        return random.Random(int.from_bytes(digest[:8], "big"))

    def depth(self) -> float:
        """A place in (0, 1): evenly spread over the indices, with a little chance in it."""
        even = (0.5 + self.index * _GOLDEN) % 1.0
        return min(max(even + self.rng("depth").uniform(-0.03, 0.03), 0.02), 0.98)

    def depths(self, count: int) -> list[float]:
        """``count`` ascending places in (0, 1), one in each of ``count`` equal parts."""
        rng = self.rng("depths")
        return [(i + rng.uniform(0.05, 0.95)) / count for i in range(count)]

    def count(self, text: str) -> int:
        """Tokens of ``text`` without special ones."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def filler(self, *, exclude: Collection[str] = (), banned: Collection[str] = ()) -> list[Piece]:
        """A run of sentences that is longer than the prompt may get."""
        rng, tokens = self.rng("filler"), self.length + _SPARE
        return passage(
            self.haystack, self.split, rng, tokens, self.count, exclude=exclude, banned=banned
        )

    def sample(
        self,
        context: str,
        question: str,
        target: str,
        answers: Sequence[str],
        *,
        answer_prefix: str = "",
        chat: bool = True,
        max_new_tokens: int | None = None,
        choices: Sequence[str] = (),
        evidence: Sequence[tuple[int, int]] = (),
    ) -> Sample:
        """The sample with this request's name on it (query-visible).

        ``max_new_tokens`` leaves room for a third more than the target unless given.
        """
        if max_new_tokens is None:
            max_new_tokens = math.ceil(1.3 * self.count(target)) + 4
        return Sample(
            sample_id=sample_id(self.task.name, self.length, self.split, self.index),
            task=self.task.name,
            family=self.task.family,
            context=context,
            question=question,
            answers=tuple(answers),
            target=target,
            query_visible=True,
            metric=self.task.metric,
            max_new_tokens=max_new_tokens,
            haystack=self.haystack,
            length=self.length,
            split=self.split,
            index=self.index,
            answer_prefix=answer_prefix,
            chat=chat,
            choices=tuple(choices),
            evidence=tuple(evidence),
        )


@dataclass(frozen=True)
class Task:
    """A kind of sample.

    Attributes:
        name: as in the registry. family: the group that results are reported by.
        metric: how predictions are scored, one of :data:`qm_vllm_eval.sample.METRICS`.
        description: one sentence.
        build: makes one sample of a request, or raises :class:`Unfit`.
        haystacks: names of the texts that it may use.
        minimum: tokens of the shortest prompt that it can be built for.
        files: names of the data files that it reads, with the haystack :data:`DATA`.
        room: tokens that its target or prediction takes behind the prompt, at most.
    """

    name: str
    family: str
    metric: str
    description: str
    build: Callable[[Request], Sample] = field(repr=False)
    haystacks: tuple[str, ...] = ("essays", "novels", "faq")
    minimum: int = 256
    files: tuple[str, ...] = ()
    room: int = 160


def join(pieces: Sequence[Piece]) -> str:
    """The pieces as one text."""
    return "".join(piece.joiner + piece.text for piece in pieces).strip()


def insert(pieces: Sequence[Piece], texts: Sequence[str], depths: Sequence[float]) -> list[Piece]:
    """Put sentences between sentences: each text at its depth in [0, 1], measured in pieces."""
    result: list[Piece] = []
    order = sorted(range(len(texts)), key=lambda i: depths[i])
    done = 0
    for i in order:
        place = round(depths[i] * len(pieces))
        result.extend(pieces[done:place])
        result.append(Piece(" ", texts[i]))
        done = max(done, place)
    result.extend(pieces[done:])
    return result


def fit(request: Request, pieces: Sequence[Piece], make: Callable[[list[Piece]], Sample]) -> Sample:
    """The sample over the first pieces, as many as the length allows; the last one may be cut.

    Args:
        pieces: filler of more tokens than the prompt may have.
        make: the whole sample for some of the filler; equal input gives equal output.

    Raises:
        Unfit: no number of pieces gives a prompt of the right length.
    """
    sizes = [request.count(piece.joiner + piece.text) for piece in pieces]
    wanted = request.length - 100
    for _ in range(_ATTEMPTS):
        if wanted < 0:
            raise Unfit("the fixed parts alone are too long")
        sample = make(_first_tokens(request, pieces, sizes, wanted))
        found = prompt_length(sample, request.tokenizer)
        if request.length - TOLERANCE <= found <= request.length:
            return sample
        wanted += request.length - _AIM - found
    raise Unfit("no number of sentences gives this length")


def _first_tokens(
    request: Request, pieces: Sequence[Piece], sizes: Sequence[int], wanted: int
) -> list[Piece]:
    """Pieces of about ``wanted`` tokens: whole ones, then the beginning of the next."""
    chosen: list[Piece] = []
    for piece, size in zip(pieces, sizes, strict=True):
        if size > wanted:
            beginning = _beginning(request, piece, wanted)
            return [*chosen, beginning] if beginning else chosen
        chosen.append(piece)
        wanted -= size
    return chosen


def _beginning(request: Request, piece: Piece, tokens: int) -> Piece | None:
    """The first words of a sentence with a full stop; None if too few would be left."""
    if tokens < 6:
        return None
    words = piece.text.split(" ")
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        if request.count(piece.joiner + " ".join(words[:middle])) < tokens:
            low = middle
        else:
            high = middle - 1
    text = re.sub(r"\W+$", "", " ".join(words[:low]))
    return Piece(piece.joiner, text + ".") if low >= 2 and text else None
