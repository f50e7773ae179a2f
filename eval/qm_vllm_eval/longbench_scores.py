"""Scores of LongBench (Bai et al. 2024): code lines, classes, numbers; answers have F1.

Its F1 is that of :mod:`qm_vllm_eval.answers`, its ROUGE-L that of :mod:`qm_vllm_eval.rouge`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_COMMENTS = ("`", "#", "//")


def first_line(prediction: str) -> str:
    """The first line that is not empty: a model that was shown examples goes on with more."""
    return prediction.lstrip("\n").split("\n", 1)[0]


def edit_similarity(one: str, other: str) -> float:
    """2 M / (length of both), M the longest common subsequence of characters, in [0, 1].

    This is 1 less the share of insertions and deletions, the "ratio" of fuzzy matching
    packages, which round it to whole per cents. Two empty texts are equal: 1.
    """
    if not one and not other:
        return 1.0
    row = [0] * (len(other) + 1)
    for character in one:
        above = row
        row = [0]
        for at, own in enumerate(other):
            row.append(above[at] + 1 if character == own else max(row[at], above[at + 1]))
    return 2 * row[-1] / (len(one) + len(other))


def edit_score(prediction: str, answers: Sequence[str]) -> float:
    """Edit similarity of a line of code, the best answer; of the first line without a comment.

    Lines with a backtick, "#" or "//" are left out, as LongBench does; 0 if none is left.
    """
    lines = prediction.lstrip("\n").split("\n")
    code = next((line for line in lines if not any(sign in line for sign in _COMMENTS)), "")
    return max(edit_similarity(code, answer) for answer in answers)


def class_score(prediction: str, answers: Sequence[str], choices: Sequence[str]) -> float:
    """1 / (number of classes that the first line names) if the right one is among them, else 0.

    A class that is only named because its name is a part of the right one does not count.
    """
    said = first_line(prediction)
    best = 0.0
    for answer in answers:
        named = [
            choice for choice in choices
            if choice in said and (choice == answer or choice not in answer)
        ]
        if answer in named:
            best = max(best, 1 / len(named))
    return best


def number_score(prediction: str, answers: Sequence[str]) -> float:
    """Share of the whole numbers in the prediction that are the answer's, the best answer.

    Raises:
        ValueError: an answer holds no number.
    """
    said = re.findall(r"\d+", prediction)
    best = 0.0
    for answer in answers:
        number = re.search(r"\d+", answer)
        if number is None:
            raise ValueError(f"the answer {answer!r} holds no number")
        if said:
            best = max(best, said.count(number[0]) / len(said))
    return best
