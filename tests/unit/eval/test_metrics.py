"""Scores and intervals against values worked out by hand, and what must hold for any numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm_eval.match import match_score
from qm_vllm_eval.metrics import bootstrap_mean, bootstrap_retention, retention

NLLS = st.lists(st.floats(0, 20), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("metric", "prediction", "answers", "expected"),
    [
        ("all", "They are 12, and 34.", ["12", "34", "56", "78"], 0.5),
        ("all", "LISBON it was", ["Lisbon"], 1.0),
        ("all", "", ["Lisbon"], 0.0),
        ("any", "in lisbon", ["Oslo", "Lisbon"], 1.0),
        ("any", "in Rome", ["Oslo", "Lisbon"], 0.0),
    ],
)
def test_substring_scores(
    metric: str, prediction: str, answers: list[str], expected: float
) -> None:
    assert match_score(metric, prediction, answers, "unused") == expected


def test_rouge_l_is_f1_of_the_common_subsequence() -> None:
    # "the cat ... the mat": 4 of 4 predicted words, 4 of 6 of the target's.
    score = match_score("rouge_l", "The cat the mat", [], "the cat sat on the mat")
    assert score == pytest.approx(2 * 1.0 * (4 / 6) / (1.0 + 4 / 6))
    assert match_score("rouge_l", "same words", [], "same words") == 1.0
    assert match_score("rouge_l", "", [], "same words") == 0.0


def test_none_is_nan_and_wrong_calls_are_refused() -> None:
    assert math.isnan(match_score("none", "text", [], "text"))
    with pytest.raises(ValueError, match="there are"):
        match_score("bleu", "text", ["text"], "text")
    with pytest.raises(ValueError, match="at least one answer"):
        match_score("all", "text", [], "text")


def test_retention_by_hand() -> None:
    # means: none 3, method 1.5, full 1.
    assert retention([2, 4], [1, 2], [0.5, 1.5]) == pytest.approx(0.75)
    assert math.isnan(retention([1.0005], [0.5], [1.0]))
    assert retention([1.0], [1.5], [2.0]) == pytest.approx(0.5)  # context that harms
    with pytest.raises(ValueError, match="same samples"):
        retention([1, 2], [1], [1, 2])
    with pytest.raises(ValueError, match="same samples"):
        retention([], [], [])


@given(NLLS, st.floats(0.01, 5), st.floats(0, 1))
def test_retention_of_mixtures(full: list[float], benefit: float, share: float) -> None:
    """A method that keeps a share of the benefit on every sample has that retention."""
    best = np.array(full)
    none = best + benefit
    method = best + (1 - share) * benefit
    assert retention(none, method, best) == pytest.approx(share, abs=1e-6)
    low, high = bootstrap_retention(none, method, best, resamples=50)
    assert (low, high) == pytest.approx((share, share), abs=1e-6)


@given(NLLS, st.integers(0, 3))
def test_mean_interval_lies_in_the_data_and_repeats(values: list[float], seed: int) -> None:
    low, high = bootstrap_mean(values, resamples=60, seed=seed)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert (low, high) == bootstrap_mean(values, resamples=60, seed=seed)


def test_mean_interval_of_a_known_case() -> None:
    """Of many coin throws the interval is near the normal approximation; NaN is left out."""
    values = [0.0, 1.0] * 200 + [math.nan]
    low, high = bootstrap_mean(values)
    assert (low, high) == pytest.approx((0.451, 0.549), abs=0.01)
    assert all(math.isnan(end) for end in bootstrap_mean([math.nan]))


def test_retention_interval_uses_whole_triples() -> None:
    """Where method and full move together, pairing keeps the interval narrow."""
    rng = np.random.default_rng(3)
    full = rng.uniform(0, 5, 40)
    none, method = full + 2 + rng.normal(0, 0.1, 40), full + 0.5 + rng.normal(0, 0.1, 40)
    low, high = bootstrap_retention(none, method, full)
    assert low < retention(none, method, full) < high
    assert high - low < 0.1
    assert bootstrap_retention(none, method, full, seed=1) != (low, high)
    assert all(math.isnan(end) for end in bootstrap_retention(full, method, full))
