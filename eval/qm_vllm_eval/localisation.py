"""How well predicted time windows find the moment that a query asks for.

R@1 and R@5 at IoU 0.3 and 0.5 (strictly greater) and the mean IoU of the first window are the
metrics of the Ego4D NLQ challenge, on predictions in its submission format. AP@0.5 is not one of
them: it follows the QVHighlights / ActivityNet protocol and is labelled so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from qm_vllm_eval.metrics import mean_interval

Span = tuple[float, float]
"""Start and end in seconds of the clip."""

VERSION, CHALLENGE = "1.0", "ego4d_nlq_challenge"
SEGMENTS = 5
THRESHOLDS, RANKS = (0.3, 0.5), (1, 5)
AVERAGE_PRECISION = "AP@0.5 (QVHighlights protocol)"
METRICS = (*(f"R@{k} IoU>{t}" for k in RANKS for t in THRESHOLDS), "mIoU", AVERAGE_PRECISION)


@dataclass(frozen=True)
class Prediction:
    """Windows for one query, the best first.

    Attributes:
        clip_uid, annotation_uid, query_idx: name the query as in the annotations.
        windows: one to five (start, end) in seconds of the clip.

    Raises:
        ValueError: no window or more than five, or one that is not finite or ends before it
            starts.
    """

    clip_uid: str
    annotation_uid: str
    query_idx: int
    windows: tuple[Span, ...]

    def __post_init__(self) -> None:
        """Checks the windows."""
        name = f"{self.clip_uid} / {self.annotation_uid} / {self.query_idx}"
        if not 1 <= len(self.windows) <= SEGMENTS:
            raise ValueError(f"{name} has {len(self.windows)} windows; give 1 to {SEGMENTS}")
        for window in self.windows:
            if len(window) != 2 or not all(math.isfinite(time) for time in window):
                raise ValueError(f"{name} has the window {window}; give two finite times")
            if window[0] > window[1]:
                raise ValueError(f"{name} has the window {window}, which ends before it starts")

    @property
    def key(self) -> tuple[str, str, int]:
        """What names the query."""
        return self.clip_uid, self.annotation_uid, self.query_idx


def iou(one: Span, other: Span) -> float:
    """Length of the overlap over that of the union, in [0, 1].

    A window and itself have IoU 1, without any length, too: the answer is right. (The challenge's
    own script divides by zero there.) Otherwise a window without length has IoU 0.
    """
    if one[0] == other[0] and one[1] == other[1]:
        return 1.0
    overlap = min(one[1], other[1]) - max(one[0], other[0])
    if overlap <= 0:
        return 0.0
    return overlap / (max(one[1], other[1]) - min(one[0], other[0]))


def average_precision(windows: Sequence[Span], truths: Sequence[Span], threshold: float) -> float:
    """AP of one query's windows by the QVHighlights / ActivityNet protocol.

    In the order of the windows, each takes the best truth that is still free and reaches the
    threshold (IoU >= threshold, not >); a window that finds none is a false positive. AP is the
    area under the precision-recall curve after each precision is raised to the highest one at
    the same or a greater recall. With one truth that is 1 / rank of the first hit.
    """
    if not truths:
        raise ValueError("a query needs at least one true window")
    free = list(truths)
    hits: list[bool] = []
    for window in windows:
        best = max(free, key=lambda truth: iou(window, truth), default=None)
        hits.append(best is not None and iou(window, best) >= threshold)
        if hits[-1]:
            free.remove(best)  # type: ignore[arg-type]
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float((highest * hits).sum() / len(truths))


def query_scores(windows: Sequence[Span], truth: Span) -> dict[str, float]:
    """Every metric of :data:`METRICS` for one query; 0 or 1 for the recalls."""
    ious = [iou(window, truth) for window in windows]
    scores = {
        f"R@{k} IoU>{t}": float(any(value > t for value in ious[:k]))
        for k in RANKS
        for t in THRESHOLDS
    }
    scores["mIoU"] = ious[0] if ious else 0.0
    scores[AVERAGE_PRECISION] = average_precision(windows, [truth], 0.5)
    return scores


def evaluate(
    predictions: Iterable[Prediction],
    truths: dict[tuple[str, str, int], Span],
    *,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Means over queries in [0, 1] with 95 % bootstrap intervals over queries.

    Args:
        predictions: at most one for each query.
        truths: the true window of every query that has to be answered, by :attr:`Prediction.key`.
            One without a prediction scores 0 (the challenge's script leaves it out).

    Returns:
        per metric: mean, low, high.

    Raises:
        ValueError: there are no truths, a prediction answers no query, or two the same one.
    """
    if not truths:
        raise ValueError("there is no query to score")
    given: dict[tuple[str, str, int], Prediction] = {}
    for prediction in predictions:
        if prediction.key not in truths:
            raise ValueError(f"the prediction for {prediction.key} answers no known query")
        if prediction.key in given:
            raise ValueError(f"there are two predictions for {prediction.key}")
        given[prediction.key] = prediction
    # Sorted, so that the intervals do not depend on the order of the queries.
    rows = [
        query_scores(given[key].windows if key in given else (), truths[key])
        for key in sorted(truths)
    ]
    return {
        metric: mean_interval([row[metric] for row in rows], seed=seed) for metric in METRICS
    }


def random_windows(seconds: float, rng: np.random.Generator, count: int = SEGMENTS) -> list[Span]:
    """A guess: windows whose two ends are drawn evenly from the clip. What chance scores."""
    return [(float(a), float(b)) for a, b in np.sort(rng.uniform(0, seconds, (count, 2)), axis=1)]


def submission(predictions: Iterable[Prediction]) -> dict[str, Any]:
    """The object that the Ego4D NLQ challenge takes as a JSON file."""
    results = [
        {
            "clip_uid": prediction.clip_uid,
            "annotation_uid": prediction.annotation_uid,
            "query_idx": int(prediction.query_idx),
            "predicted_times": [[float(start), float(end)] for start, end in prediction.windows],
        }
        for prediction in predictions
    ]
    return {"version": VERSION, "challenge": CHALLENGE, "results": results}


def write_submission(path: Path, predictions: Iterable[Prediction]) -> None:
    """Writes :func:`submission` as a file."""
    path.write_text(json.dumps(submission(predictions), indent=1) + "\n", encoding="utf-8")


def read_submission(path: Path) -> list[Prediction]:
    """The predictions of a submission file.

    Raises:
        ValueError: it is no JSON of this format, or a prediction in it is not allowed.
        OSError: the file cannot be read.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(held, dict) or held.get("version") != VERSION:
        raise ValueError(f"{path} is no submission of version {VERSION}")
    if held.get("challenge") != CHALLENGE:
        raise ValueError(f"{path} is for {held.get('challenge')!r}, not {CHALLENGE!r}")
    if not isinstance(held.get("results"), list):
        raise ValueError(f"{path} has no list 'results'")
    result = []
    for number, entry in enumerate(held["results"]):
        try:
            windows = tuple((float(start), float(end)) for start, end in entry["predicted_times"])
            names = (str(entry["clip_uid"]), str(entry["annotation_uid"]))
            result.append(Prediction(*names, index(entry["query_idx"]), windows))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path}: result {number} is not valid: {error!r}") from error
    return result
