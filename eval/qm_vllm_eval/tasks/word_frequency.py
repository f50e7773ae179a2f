"""Lists of words: which come most often. Every part of the context matters a little.

After the common-words and frequent-words tasks of RULER (Hsieh et al. 2024). Any beginning of a
list has the same most frequent words, so lists can be cut to any length.
"""

from __future__ import annotations

import random
from collections import Counter

from qm_vllm_eval.haystacks import Piece
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import vocabulary
from qm_vllm_eval.tasks.base import WORDS, Request, Task, Unfit, fit

FAMILY = "frequency"
COMMON = 4
FREQUENT = 3
CODED = 40
EXPONENT = 1.5
"""The word of rank r comes r ** -EXPONENT times as often as the first."""

_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
_BLOCK = 8


def _common(request: Request) -> Sample:
    """Half of the list is four words again and again, half are words that come seldom."""
    rng = request.rng("words")
    words = rng.sample(vocabulary.nouns(request.split), len(vocabulary.nouns(request.split)))
    common, seldom = words[:COMMON], words[COMMON:]
    stream: list[str] = []
    while len(stream) < request.length:
        turn = rng.sample(seldom, len(seldom))
        for i in range(0, len(turn) - COMMON + 1, COMMON):
            block = common + turn[i : i + COMMON]
            stream.extend(rng.sample(block, len(block)))

    def make(pieces: list[Piece]) -> Sample:
        listed = _words_of(pieces)
        # In the order of their first appearance: one right way to write the target.
        asked = sorted(common, key=listed.index) if set(common) <= set(listed) else []
        if len(listed) < 3 * _BLOCK or not asked:
            raise Unfit("too few words")
        return request.sample(
            "Here is a list of words: " + ", ".join(listed) + ".",
            f"\n\nWhich {COMMON} words come most often in the list? Name them in the order in "
            "which they first appear.",
            " " + ", ".join(asked),
            asked,
            answer_prefix=f"The {COMMON} most common words in the list are",
        )

    return fit(request, [Piece(", ", word) for word in stream], make)


def _frequent(request: Request) -> Sample:
    rng = request.rng("words")
    coded: list[str] = []
    while len(coded) < CODED:
        word = _invented(rng)
        if word not in coded:
            coded.append(word)
    stream = _zeta_stream(coded, request.length, rng)

    def make(pieces: list[Piece]) -> Sample:
        listed = _words_of(pieces)
        counts = Counter(listed).most_common(FREQUENT + 1)
        numbers = [count for _, count in counts]
        if len(set(numbers)) <= FREQUENT:
            raise Unfit("two of the most frequent words come equally often")
        asked = [word for word, _ in counts[:FREQUENT]]
        return request.sample(
            "Here is a text in code: " + " ".join(listed) + ".",
            f"\n\nWhich {FREQUENT} coded words come most often in the text? Begin with the most "
            "frequent one.",
            " " + ", ".join(asked),
            asked,
            answer_prefix=f"The {FREQUENT} most frequent coded words are",
        )

    return fit(request, [Piece(" ", word) for word in stream], make)


def _zeta_stream(words: list[str], count: int, rng: random.Random) -> list[str]:
    """Words by a zeta-like law: every beginning has them near their shares, order shuffled."""
    weights = [(rank + 1) ** -EXPONENT for rank in range(len(words))]
    total = sum(weights)
    given = [0] * len(words)
    stream: list[str] = []
    for step in range(1, count + 1):
        missing = [step * w / total - g for w, g in zip(weights, given, strict=True)]
        best = max(range(len(words)), key=missing.__getitem__)
        given[best] += 1
        stream.append(words[best])
    for start in range(0, len(stream), _BLOCK):
        block = stream[start : start + _BLOCK]
        stream[start : start + _BLOCK] = rng.sample(block, len(block))
    return stream


def _invented(rng: random.Random) -> str:
    """Three open syllables, such as "bakilo"."""
    return "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(3))


def _words_of(pieces: list[Piece]) -> list[str]:
    return [piece.text.rstrip(".") for piece in pieces]


TASKS = (
    Task(
        "common_words",
        FAMILY,
        "all",
        "A list in which four words come again and again.",
        _common,
        haystacks=(WORDS,),
    ),
    Task(
        "frequent_words",
        FAMILY,
        "all",
        "Invented words by a zeta-like law; the three most frequent are asked.",
        _frequent,
        haystacks=(WORDS,),
    ),
)
