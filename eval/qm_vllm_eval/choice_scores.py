"""Scores of answers that are chosen: the letter of L-Eval's exams, the words of BABILong."""

from __future__ import annotations

import re
from collections.abc import Sequence

_LETTER = re.compile(r"\(([A-Z])\)|(?<![A-Za-z'\u2019])([B-HJ-Z])(?![A-Za-z'\u2019])"
                     r"|(?:^|[:*(]\s*)(A|I)(?=\s*(?:[.,:)*]|$))")
_SENTENCE = re.compile(r"[.\n]|question:", re.IGNORECASE)


def choice_letter(text: str) -> str:
    """The first letter of a choice that a text names, "" if it names none.

    A letter counts in brackets, or alone; "A" and "I", which are words too, alone only at the
    beginning or behind a colon, and before a mark or the end.
    """
    found = _LETTER.search(text.strip())
    return next((letter for letter in found.groups() if letter), "") if found else ""


def letter_score(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction's first letter is the answer's: exact choice (An et al. 2023).

    L-Eval takes "A" where a model names no letter; here that is wrong.
    """
    said = choice_letter(prediction)
    return float(bool(said) and said in {choice_letter(answer) for answer in answers})


def words_score(prediction: str, answers: Sequence[str], choices: Sequence[str]) -> float:
    """1 if the first sentence names all words of an answer and no other choice, else 0.

    The rule of BABILong (Kuratov et al. 2024): a model that lists every place has not answered.

    Args:
        answers: each one word, or several by comma.
        choices: words that may be an answer, without those that the question names.
    """
    said = _SENTENCE.split(prediction.strip().lower(), maxsplit=1)[0]
    named = {word.lower() for word in choices if _names(said, word)}
    for answer in answers:
        wanted = [word.strip().lower() for word in answer.split(",")]
        if all(_names(said, word) for word in wanted) and named <= set(wanted):
            return 1.0
    return 0.0


def _names(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word.lower())}(?!\w)", text) is not None
