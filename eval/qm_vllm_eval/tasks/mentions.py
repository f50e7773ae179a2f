"""Where a document tells an answer, so that what is cut off does not take the answer with it."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

NEAR = 60
"""Words on both sides of a mention that are compared with the question."""
FEWEST, RETOLD = 3, 0.8
"""Words that an answer has at least to be looked for in other words, and their share."""
_PLAIN = frozenset(("yes", "no", "true", "false", "none", "unanswerable"))


def words_of(text: str) -> list[str]:
    """The words with the space behind each; that before the first is left out."""
    return re.findall(r"\S+\s*", text)


def mention(
    words: Sequence[str], question: str, answers: Sequence[str]
) -> tuple[int, int] | None:
    """Which words say an answer: [first, last), or None if none does.

    Of several places it is the one whose surroundings share most words with the question. An
    answer that is said nowhere word for word may be :func:`retold`. "Yes" and its like are said
    nowhere: they have to be concluded.
    """
    text = "".join(words)
    starts = [0, *accumulate(map(len, words))]
    asked = _long_words(question)
    best: tuple[int, int, int] | None = None
    for answer in answers:
        told = re.findall(r"\S+", answer.strip(" .,;:"))
        if not told or (len(told) == 1 and told[0].lower() in _PLAIN):
            continue
        pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, told)) + r"(?!\w)"
        for found in re.finditer(pattern, text, re.IGNORECASE):
            first = bisect_right(starts, found.start()) - 1
            last = bisect_right(starts, found.end() - 1)
            near = "".join(words[max(0, first - NEAR) : last + NEAR])
            shared = len(asked & _long_words(near))
            if best is None or shared > best[0]:
                best = (shared, first, last)
    if best:
        return best[1:]
    return next((place for answer in answers if (place := retold(words, answer))), None)


def retold(words: Sequence[str], answer: str) -> tuple[int, int] | None:
    """Which words [first, last) hold most words of a longer answer close together.

    Words of four letters or more count, at least three, and :data:`RETOLD` of them have to stand
    within :data:`NEAR` words; else None.
    """
    wanted = _long_words(answer)
    if len(wanted) < FEWEST:
        return None
    hits = [
        (place, word) for place, text in enumerate(words)
        for word in wanted.intersection(_long_words(text))
    ]
    best: tuple[int, int, int] | None = None
    seen: Counter[str] = Counter()
    start = 0
    for place, word in hits:
        seen[word] += 1
        while place - hits[start][0] >= NEAR:
            seen[hits[start][1]] -= 1
            start += 1
        found = sum(count > 0 for count in seen.values())
        if best is None or found > best[0]:
            best = (found, hits[start][0], place + 1)
    return best[1:] if best and best[0] >= RETOLD * len(wanted) else None


def _long_words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 3}


def said_answer(text: str, answers: Sequence[str]) -> str:
    """The first accepted answer that the text says, else the first one."""
    low = text.lower()
    return next((answer for answer in answers if answer.lower() in low), answers[0])
