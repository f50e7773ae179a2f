"""Answers: token F1 and exact match with several references, accuracy, average precision.

All through torchmetrics. Its SQuAD metric normalises as the official evaluators of SQuAD and
QASPER do: lower case, without punctuation, without a/an/the, white space collapsed. The best
reference counts, metric by metric. Average precision of time windows is another thing: see
:mod:`qm_vllm_eval.localisation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from qm_vllm_eval.metrics import mean_interval

METRICS = ("f1", "exact_match")


def answer_scores(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """``f1`` over tokens and ``exact_match`` of one answer in [0, 1], the best reference each.

    An answer without words (nothing but articles and punctuation) matches a reference without
    words, and no other: that is how "no answer" is scored.

    Raises:
        ValueError: there is no reference.
    """
    if isinstance(references, str) or not references:
        raise ValueError("an answer needs a list of at least one reference to be scored")
    from torchmetrics.functional.text import squad

    truth = {"text": list(references), "answer_start": [0] * len(references)}
    got = squad(
        {"prediction_text": prediction, "id": "0"}, {"answers": truth, "id": "0"}  # type: ignore[arg-type,dict-item,unused-ignore]
    )
    return {metric: float(got[metric]) / 100 for metric in METRICS}


def mean_answers(
    scores: Iterable[Mapping[str, float]], *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Per metric the mean over questions with its 95 % bootstrap interval: mean, low, high."""
    rows = list(scores)
    return {
        metric: mean_interval([row[metric] for row in rows], seed=seed) for metric in METRICS
    }


def top_accuracy(scores: ArrayLike, labels: ArrayLike, *, k: int = 1) -> list[float]:
    """1 or 0 for each sample: whether its label is among the k highest scores.

    Give the list to :func:`qm_vllm_eval.metrics.mean_interval`. Among equal scores at the edge
    torch's ``topk`` decides.

    Args:
        scores: [S, C], higher is likelier.
        labels: whole numbers [S] in 0 .. C - 1.
        k: 1 .. C.

    Raises:
        ValueError: shapes, labels or k do not fit, or a score is NaN.
    """
    rows = torch.as_tensor(np.asarray(scores, dtype=np.float64))
    truth = torch.as_tensor(np.asarray(labels))
    if rows.ndim != 2 or rows.shape[0] < 1 or truth.shape != rows.shape[:1]:
        raise ValueError(
            f"scores {list(rows.shape)} and labels {list(truth.shape)} must be [S >= 1, C], [S]"
        )
    classes = rows.shape[1]
    if truth.is_floating_point() or int(truth.min()) < 0 or int(truth.max()) >= classes:
        raise ValueError(f"labels must be whole numbers from 0 to {classes - 1}")
    if not 1 <= k <= classes:
        raise ValueError(f"k={k} must be from 1 to {classes}")
    if bool(rows.isnan().any()):
        raise ValueError(f"scores {list(rows.shape)} hold NaN")
    if classes == 1:
        return [1.0] * len(truth)  # torchmetrics wants two classes
    from torchmetrics.functional.classification import multiclass_accuracy

    got = multiclass_accuracy(
        rows[..., None], truth.long()[:, None], num_classes=classes, top_k=k, average="micro",
        multidim_average="samplewise",
    )
    return [float(value) for value in got]


def choices(nats: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]] | None = None
            ) -> list[int]:
    """The likeliest choice of each multiple-choice question, the first of equal ones.

    Args:
        nats: for each question the total NLL of each of its choices; their number may differ.
        tokens: lengths of the choices, to compare NLL per token; None: compare totals.

    Raises:
        ValueError: a question without choices, a NaN, or lengths that do not fit.
    """
    if tokens is not None:
        shapes = [[len(row) for row in table] for table in (nats, tokens)]
        if shapes[0] != shapes[1] or any(count < 1 for row in tokens for count in row):
            raise ValueError("every choice needs a length of at least one token")
        nats = [
            [loss / count for loss, count in zip(*pair, strict=True)]
            for pair in zip(nats, tokens, strict=True)
        ]
    for number, row in enumerate(nats):
        if not len(row) or any(loss != loss for loss in row):
            raise ValueError(f"question {number} has no choices, or a NaN among their losses")
    return [int(np.argmin(row)) for row in nats]


def ranked_precision(scores: ArrayLike, relevant: ArrayLike) -> float:
    """Average precision of one ranking in [0, 1]: sum over hits of precision x recall gained.

    Equal scores are one step of the curve, so the order of the input does not matter.

    Args:
        scores: [S], higher is ranked first; finite or infinite, any scale.
        relevant: bool [S], at least one true.

    Raises:
        ValueError: shapes differ, a score is NaN, or nothing is relevant.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(relevant, dtype=bool)
    if values.ndim != 1 or truth.shape != values.shape:
        raise ValueError(f"scores {values.shape} and relevant {truth.shape} must be [S], [S]")
    if np.isnan(values).any() or not truth.any():
        raise ValueError("a ranking needs scores without NaN and at least one relevant item")
    from torchmetrics.functional.classification import binary_average_precision

    # torchmetrics squashes scores outside [0, 1], which makes large ones equal: give it ranks.
    distinct, ranks = np.unique(values, return_inverse=True)
    places = torch.as_tensor(ranks.astype(np.float64) / len(distinct))
    return float(binary_average_precision(places, torch.as_tensor(truth).long()))


def implementation() -> dict[str, Any]:
    """What computed the scores, for the results file."""
    return {
        "package": "torchmetrics", "version": version("torchmetrics"),
        "normalisation": "SQuAD: lower case, no punctuation, no articles, white space collapsed",
        "references": "maximum over the references, metric by metric",
    }
