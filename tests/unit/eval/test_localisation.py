"""Localisation metrics against the protocols written out again, and the submission format."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm_eval.localisation import (
    AVERAGE_PRECISION,
    METRICS,
    Prediction,
    average_precision,
    evaluate,
    iou,
    query_scores,
    random_windows,
    read_submission,
    submission,
    write_submission,
)

# Whole seconds, so that windows often touch, coincide or have no length.
TIMES = st.integers(0, 12)
WINDOWS = st.tuples(TIMES, TIMES).map(lambda pair: (float(min(pair)), float(max(pair))))
LISTS = st.lists(WINDOWS, min_size=1, max_size=5)


def counted_iou(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Over whole seconds: those in both over those in one or the other; 1 for the same window."""
    if one == other:
        return 1.0
    first = {t for t in range(12) if one[0] <= t < one[1]}
    second = {t for t in range(12) if other[0] <= t < other[1]}
    return len(first & second) / len(first | second) if first | second else 0.0


@given(WINDOWS, WINDOWS)
def test_iou_counts_seconds(one: tuple[float, float], other: tuple[float, float]) -> None:
    overlap = counted_iou(one, other)
    assert iou(one, other) == iou(other, one)
    assert 0 <= iou(one, other) <= 1
    assert iou(one, other) == pytest.approx(overlap)


def test_iou_by_hand() -> None:
    assert iou((0, 10), (5, 20)) == 0.25
    assert iou((0, 10), (0, 10)) == 1.0
    assert iou((0, 4), (4, 8)) == iou((0, 1), (5, 6)) == 0.0
    assert iou((3, 3), (0, 9)) == iou((3, 3), (4, 4)) == iou((3, 3), (3, 4)) == 0.0
    assert iou((3, 3), (3, 3)) == 1.0


def challenge(predicted: dict[Any, list], truths: dict[Any, tuple]) -> dict[str, float]:
    """The challenge's protocol in arrays: recall at k, mean IoU of the first window."""
    overlaps = []
    for key, truth in truths.items():
        windows = np.array(predicted[key], dtype=float)
        inner = np.minimum(windows[:, 1], truth[1]) - np.maximum(windows[:, 0], truth[0])
        outer = np.maximum(windows[:, 1], truth[1]) - np.minimum(windows[:, 0], truth[0])
        overlaps.append(np.maximum(inner, 0) / outer)
    held = {
        f"R@{k} IoU>{t}": np.mean([(overlap[:k] > t).any() for overlap in overlaps])
        for k in (1, 5)
        for t in (0.3, 0.5)
    }
    return held | {"mIoU": np.mean([overlap[0] for overlap in overlaps])}


@given(st.lists(st.tuples(WINDOWS.filter(lambda w: w[1] > w[0]), LISTS), min_size=1, max_size=8))
def test_means_are_the_challenges(queries: list[tuple[tuple[float, float], Any]]) -> None:
    truths = {("c", "a", i): truth for i, (truth, _) in enumerate(queries)}
    predicted = {("c", "a", i): windows for i, (_, windows) in enumerate(queries)}
    result = evaluate([Prediction(*k, tuple(w)) for k, w in predicted.items()], truths)
    assert tuple(result) == METRICS
    for metric, expected in challenge(predicted, truths).items():
        assert result[metric]["mean"] == pytest.approx(expected)
        assert result[metric]["low"] - 1e-9 <= expected <= result[metric]["high"] + 1e-9


def test_recall_wants_more_than_the_threshold_and_average_precision_does_not() -> None:
    half, third = query_scores([(0, 5)], (0, 10)), query_scores([(0, 3)], (0, 10))
    assert iou((0, 3), (0, 10)) == 0.3
    assert (half["R@1 IoU>0.5"], half["R@1 IoU>0.3"], half[AVERAGE_PRECISION]) == (0, 1, 1)
    assert (third["R@1 IoU>0.3"], third[AVERAGE_PRECISION]) == (0, 0)
    assert query_scores([(0, 5.001)], (0, 10))["R@1 IoU>0.5"] == 1


def test_only_the_first_window_counts_for_one_and_for_the_mean() -> None:
    scores = query_scores([(90, 99), (80, 89), (0, 10)], (0, 10))
    assert (scores["R@1 IoU>0.3"], scores["R@5 IoU>0.3"], scores["R@5 IoU>0.5"]) == (0, 1, 1)
    assert scores["mIoU"] == 0
    assert scores[AVERAGE_PRECISION] == pytest.approx(1 / 3)


def qvhighlights(
    windows: list[tuple[float, float]], truths: list[tuple[float, float]], threshold: float
) -> float:
    """Greedy matching with locks, then the area under the interpolated curve, step by step."""
    taken: set[int] = set()
    true_positive = []
    for window in windows:
        overlaps = [counted_iou(window, truth) for truth in truths]
        hit = False
        for place in sorted(range(len(truths)), key=lambda i: -overlaps[i]):
            if overlaps[place] < threshold:
                break
            if place not in taken:
                taken.add(place)
                hit = True
                break
        true_positive.append(hit)
    recall, precision = [0.0], [0.0]
    for rank in range(1, len(windows) + 1):
        found = sum(true_positive[:rank])
        recall.append(found / len(truths))
        precision.append(found / rank)
    recall.append(1.0)
    precision.append(0.0)
    for place in reversed(range(len(precision) - 1)):
        precision[place] = max(precision[place], precision[place + 1])
    return sum(
        (recall[i] - recall[i - 1]) * precision[i]
        for i in range(1, len(recall))
        if recall[i] != recall[i - 1]
    )


@given(LISTS, st.lists(WINDOWS, min_size=1, max_size=4), st.sampled_from([0.25, 0.5, 0.75]))
def test_average_precision_is_qvhighlights(windows: Any, truths: Any, threshold: float) -> None:
    expected = qvhighlights(windows, truths, threshold)
    assert average_precision(windows, truths, threshold) == pytest.approx(expected)


def test_average_precision_by_hand() -> None:
    truths = [(0, 10), (20, 30)]
    # hit, miss, hit: precision 1 at recall 1/2, 2/3 at recall 1.
    assert average_precision([(0, 10), (50, 60), (20, 30)], truths, 0.5) == pytest.approx(5 / 6)
    # A truth is found once; finding it again is a false positive.
    assert average_precision([(0, 10), (0, 9), (20, 30)], truths, 0.5) == pytest.approx(5 / 6)
    # miss, hit, hit: precision 2/3 at recall 1 holds for lower recalls too.
    assert average_precision([(50, 60), (0, 10), (20, 30)], truths, 0.5) == pytest.approx(2 / 3)
    assert average_precision([], truths, 0.5) == 0
    with pytest.raises(ValueError, match="at least one true window"):
        average_precision([(0, 1)], [], 0.5)


@given(st.lists(WINDOWS, min_size=1, max_size=8))
def test_a_perfect_answer_scores_one_with_windows_without_length_too(windows: Any) -> None:
    truths = {("c", "a", i): window for i, window in enumerate(windows)}
    result = evaluate([Prediction(*key, (truth,)) for key, truth in truths.items()], truths)
    assert {result[metric]["mean"] for metric in METRICS} == {1.0}


def test_queries_without_a_prediction_and_points_that_are_missed_score_nothing() -> None:
    truths = {("c", "a", 0): (0.0, 10.0), ("c", "a", 1): (0.0, 10.0), ("c", "a", 2): (5.0, 5.0)}
    given_ = [Prediction("c", "a", 0, ((0, 10),)), Prediction("c", "a", 2, ((5, 6), (0, 10)))]
    result = evaluate(given_, truths)
    assert all(result[metric]["mean"] == pytest.approx(1 / 3) for metric in METRICS)


def test_intervals_do_not_depend_on_the_order() -> None:
    truths = {("c", "a", i): (0.0, float(i + 1)) for i in range(30)}
    guesses = [Prediction("c", "a", i, ((0, 10),)) for i in range(30)]
    result = evaluate(guesses, truths, seed=1)
    assert result == evaluate(guesses[::-1], dict(reversed(truths.items())), seed=1)
    assert result["mIoU"]["low"] < result["mIoU"]["mean"] < result["mIoU"]["high"]


def test_predictions_that_answer_nothing_are_refused() -> None:
    truths = {("c", "a", 0): (0.0, 1.0)}
    one = Prediction("c", "a", 0, ((0, 1),))
    with pytest.raises(ValueError, match="no query to score"):
        evaluate([], {})
    with pytest.raises(ValueError, match="answers no known query"):
        evaluate([Prediction("c", "b", 0, ((0, 1),))], truths)
    with pytest.raises(ValueError, match="two predictions for"):
        evaluate([one, one], truths)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ((), "c / a / 0 has 0 windows; give 1 to 5"),
        (((0, 1),) * 6, "has 6 windows"),
        (((0, 1), (2, 1)), r"the window \(2, 1\), which ends before it starts"),
        (((0, math.nan),), "give two finite times"),
        (((0, 1, 2),), "give two finite times"),
    ],
)
def test_windows_that_are_none_are_refused(windows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prediction("c", "a", 0, windows)


def test_random_windows_are_even_pairs_of_the_clip() -> None:
    rng = np.random.default_rng(0)
    windows = [w for _ in range(2000) for w in random_windows(60.0, rng)]
    assert all(0 <= start <= end <= 60 for start, end in windows)
    assert len(random_windows(60.0, rng)) == 5
    # Of two even numbers the smaller one is 1/3 in the mean, the larger one 2/3.
    assert np.mean(windows, axis=0) == pytest.approx([20, 40], abs=0.6)
    again = np.random.default_rng(0)
    assert random_windows(60.0, again) == windows[:5]


def test_a_submission_is_what_the_challenge_takes(tmp_path: Path) -> None:
    file = tmp_path / "submission.json"
    predictions = [
        Prediction("c", "a", np.int64(3), ((1.5, 2.5), (np.float32(0), 9))),
        Prediction("d", "b", 0, ((0, 1),)),
    ]
    write_submission(file, predictions)
    held = json.loads(file.read_text())
    assert held == submission(predictions)
    assert held == {
        "version": "1.0",
        "challenge": "ego4d_nlq_challenge",
        "results": [
            {"clip_uid": "c", "annotation_uid": "a", "query_idx": 3,
             "predicted_times": [[1.5, 2.5], [0.0, 9.0]]},
            {"clip_uid": "d", "annotation_uid": "b", "query_idx": 0,
             "predicted_times": [[0.0, 1.0]]},
        ],
    }  # fmt: skip
    assert read_submission(file) == predictions


ENTRY = {"clip_uid": "c", "annotation_uid": "a", "query_idx": 0, "predicted_times": [[0, 1]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "2"}, "no submission of version 1.0"),
        ({"challenge": "vq2d"}, "is for 'vq2d', not 'ego4d_nlq_challenge'"),
        ({"results": None}, "has no list 'results'"),
        ({"results": [ENTRY, 3]}, "result 1 is not valid"),
        ({"results": [{**ENTRY, "query_idx": 0.5}]}, "result 0 is not valid"),
        ({"results": [{**ENTRY, "predicted_times": [[0, 1, 2]]}]}, "result 0 is not valid"),
        ({"results": [{**ENTRY, "predicted_times": [[3, 1]]}]}, "ends before it starts"),
        ({"results": [{**ENTRY, "predicted_times": [[0, 10**400]]}]}, "result 0 is not valid"),
        ({"results": [{**ENTRY, "predicted_times": []}]}, "has 0 windows"),
        ({"results": [{"clip_uid": "c"}]}, "KeyError"),
    ],
)
def test_submissions_that_are_none_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "submission.json"
    file.write_text(json.dumps({**submission([]), "results": [ENTRY], **change}))
    with pytest.raises(ValueError, match=message):
        read_submission(file)


def test_files_that_are_no_submission_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "submission.json"
    for content, message in (("{", "is no JSON"), ("[" * 100_000, "is no JSON"), ("[]", "version")):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_submission(file)
