"""Scores of published tasks, each against values worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm_eval.choice_scores import choice_letter, letter_score, words_score
from qm_vllm_eval.longbench_scores import (
    class_score,
    edit_score,
    edit_similarity,
    first_line,
    number_score,
)
from qm_vllm_eval.match import match_score


@pytest.mark.parametrize(("one", "other", "expected"), [
    ("", "", 1.0),
    ("abc", "", 0.0),
    ("abc", "abc", 1.0),
    ("kitten", "sitting", 8 / 13),  # "ittn": 4 of 6 and 7 characters
    ("return x", "return y", 14 / 16),
    ("ab", "ba", 0.5),
])  # fmt: skip
def test_edit_similarity(one: str, other: str, expected: float) -> None:
    assert edit_similarity(one, other) == pytest.approx(expected)


@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_edit_similarity_is_the_same_both_ways(one: str, other: str) -> None:
    assert edit_similarity(one, other) == edit_similarity(other, one)
    assert (edit_similarity(one, other) == 1.0) == (one == other)


def test_code_is_the_first_line_without_a_comment() -> None:
    assert edit_score("\n# a remark\n```\n  return x\nmore", ["  return x"]) == 1.0
    assert edit_score("// only\n# remarks", ["return x"]) == 0.0
    assert edit_score("return y", ["x", "return x"]) == pytest.approx(14 / 16)


def test_classes_share_what_is_named_together() -> None:
    classes = ["Date", "Other location", "Other", "City", "Food"]
    assert class_score(" Date", ["Date"], classes) == 1.0
    assert class_score("Date or Food", ["Date"], classes) == 0.5
    # "Other" is only named as a part of the right class.
    assert class_score("Other location", ["Other location"], classes) == 1.0
    assert class_score("Food", ["Date"], classes) == 0.0
    assert class_score("date", ["Date"], classes) == 0.0  # as published: by letter case
    assert class_score("Food\nType: Date", ["Date"], classes) == 0.0  # the first line counts
    assert first_line("\n\nDate\nFood") == "Date"


def test_numbers_share_what_is_said_together() -> None:
    assert number_score("Paragraph 12", ["Paragraph 12"]) == 1.0
    assert number_score("Paragraph 12 or 3", ["Paragraph 12"]) == 0.5
    assert number_score("2, 12, 2, 2", ["2"]) == 0.75
    assert number_score("none", ["2"]) == 0.0
    with pytest.raises(ValueError, match="holds no number"):
        number_score("2", ["two"])


@pytest.mark.parametrize(("text", "letter"), [
    ("(C) He left", "C"),
    (" B", "B"),
    ("B. They knew", "B"),
    ("A", "A"),
    ("A) a king", "A"),
    ("The answer is: A", "A"),
    ("The answer is (D), not (B)", "D"),
    ("The right choice is C.", "C"),
    ("A king came.", ""),
    ("I think that Clara left", ""),
    ("", ""),
])  # fmt: skip
def test_the_letter_of_a_choice(text: str, letter: str) -> None:
    assert choice_letter(text) == letter


def test_a_letter_is_right_or_wrong() -> None:
    assert letter_score("C, since he left", ["(C) He left"]) == 1.0
    assert letter_score("(B)", ["(C) He left"]) == 0.0
    assert letter_score("He left", ["(C) He left"]) == 0.0


def test_words_count_without_others_in_the_first_sentence() -> None:
    places = ["hallway", "office", "park"]
    assert words_score("In the Hallway.", ["hallway"], places) == 1.0
    assert words_score("hallway or office", ["hallway"], places) == 0.0
    assert words_score("Hallway. Not the office.", ["hallway"], places) == 1.0
    assert words_score("hallways", ["hallway"], places) == 0.0
    assert words_score("milk and an apple", ["apple,milk"], ["apple", "milk", "ball"]) == 1.0
    assert words_score("milk", ["apple,milk"], ["apple", "milk", "ball"]) == 0.0
    assert words_score("milk, apple, ball", ["apple,milk"], ["apple", "milk", "ball"]) == 0.0


def test_every_metric_is_reached_by_its_name() -> None:
    # "the red fox" against "a red dog": one of two words each (articles are left out).
    assert match_score("f1", "the red fox", ["a red dog", "blue"], "") == pytest.approx(0.5)
    assert match_score("f1_line", "red\nblue green", ["red"], "") == 1.0
    assert match_score("f1", "red\nblue green", ["red"], "") == pytest.approx(0.5)
    # 3 of 3 words against 3 of 4, with stems: 2 * 1 * 0.75 / 1.75.
    assert match_score("rouge_best", "foxes ran far", ["none", "a fox ran far"], "") == (
        pytest.approx(6 / 7)
    )
    assert match_score("edit", "x = 1", ["x = 1"], "") == 1.0
    assert match_score("numbers", "7", ["7"], "") == 1.0
    assert match_score("letter", "(A)", ["(A) x"], "") == 1.0
    assert match_score("class", "Date", ["Date"], "", ["Date", "Food"]) == 1.0
    assert match_score("words", "yes", ["yes"], "", ["yes", "no"]) == 1.0
    with pytest.raises(ValueError, match="needs the choices"):
        match_score("class", "Date", ["Date"], "")
    with pytest.raises(ValueError, match="at least one answer"):
        match_score("f1", "Date", [], "")
