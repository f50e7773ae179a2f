"""Answers against the official evaluators' rules, accuracy and precision against plain loops."""

from __future__ import annotations

import math
import re
import string
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_vllm_eval.answers import (
    answer_scores,
    choices,
    implementation,
    mean_answers,
    ranked_precision,
    top_accuracy,
)

ANSWERS = st.lists(
    st.sampled_from(["the", "a", "An", "cat", "Cat.", "dog", "42%", "the-cat", "", "--"]),
    max_size=5,
).map(" ".join)


def official(prediction: str, truth: str) -> float:
    """Token F1 of the QASPER and SQuAD 2.0 evaluators, after their published scripts."""
    def words(text):
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    said, wanted = words(prediction), words(truth)
    if not said or not wanted:
        return float(said == wanted)
    same = sum((Counter(said) & Counter(wanted)).values())
    return 2 * same / (len(said) + len(wanted))


@settings(deadline=None)
@given(ANSWERS, st.lists(ANSWERS, min_size=1, max_size=3))
def test_f1_is_the_official_one_of_the_best_reference(prediction, references) -> None:
    got = answer_scores(prediction, references)
    want = max(official(prediction, truth) for truth in references)
    assert got["f1"] == pytest.approx(want, abs=1e-6)
    assert got["exact_match"] <= got["f1"] + 1e-6


def test_by_hand() -> None:
    got = answer_scores("The Eiffel Tower, in Paris!", ["Eiffel tower", "a tower in Lyon"])
    assert got["f1"] == pytest.approx(2 / 3, abs=1e-6)  # 2 of 4 said, 2 of 2 wanted
    assert got["exact_match"] == 0.0
    assert answer_scores("an  answer", ["The answer."])["exact_match"] == 1.0
    rows = [answer_scores("cat", ["cat"]), answer_scores("cat", ["dog"])]
    assert mean_answers(rows)["f1"]["mean"] == 0.5
    assert math.isnan(mean_answers([])["f1"]["mean"])
    with pytest.raises(ValueError, match="list of at least one"):
        answer_scores("cat", [])


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 10**6))
def test_top_accuracy_is_the_label_among_the_best(classes, samples, seed) -> None:
    draw = np.random.default_rng(seed)
    scores, labels = draw.normal(size=(samples, classes)) * 100, draw.integers(0, classes, samples)
    for k in range(1, classes + 1):
        want = [float(label in np.argsort(-row)[:k])
                for row, label in zip(scores, labels, strict=True)]
        assert top_accuracy(scores, labels, k=k) == want


def test_top_accuracy_refuses() -> None:
    for scores, labels, k, message in (
        ([[1, 2]], [2], 1, "from 0 to 1"), ([[1, 2]], [0.5], 1, "whole numbers"),
        ([[1, 2]], [0, 1], 1, r"\[S\]"), ([[1, 2]], [0], 3, "k=3"),
        ([[1, math.nan]], [0], 1, "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            top_accuracy(scores, labels, k=k)


def test_choices_by_total_and_per_token() -> None:
    nats = [[6.0, 4.0], [1.0, 1.0, 0.5]]
    assert choices(nats) == [1, 2]
    assert choices(nats, [[6, 2], [1, 1, 1]]) == [0, 2]
    assert choices([[2.0, 2.0]]) == [0]
    with pytest.raises(ValueError, match="length"):
        choices(nats, [[6, 2], [1, 1]])
    with pytest.raises(ValueError, match="question 0"):
        choices([[]])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=12))
def test_ranked_precision_is_the_sum_over_steps(items) -> None:
    if not any(hit for _, hit in items):
        items = [*items, (0, True)]
    scores, hits = zip(*items, strict=True)
    total, want, before = sum(hits), 0.0, 0
    for level in sorted(set(scores), reverse=True):
        above = [hit for score, hit in items if score >= level]
        want += sum(above) / len(above) * (sum(above) - before) / total
        before = sum(above)
    for scale in (1, 1e6):  # a sigmoid would make the large ones equal
        assert ranked_precision(np.array(scores) * scale, hits) == pytest.approx(want, abs=1e-6)


def test_ranked_precision_refuses() -> None:
    for scores, hits, message in (
        ([1, 2], [True], r"\[S\]"), ([1, math.nan], [True, False], "NaN"),
        ([1, 2], [False, False], "relevant"),
    ):
        with pytest.raises(ValueError, match=message):
            ranked_precision(scores, hits)
    assert implementation()["package"] == "torchmetrics"
