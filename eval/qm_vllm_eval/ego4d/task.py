"""Ego4D NLQ as a task of the runner: queries about clips, and how well windows find the moment."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qm_vllm_eval.datasets.ego4d_nlq import FEATURES_PER_SECOND, Ego4dNlq, NlqRow
from qm_vllm_eval.ego4d.reduce import WAYS
from qm_vllm_eval.localisation import METRICS, Prediction, query_scores, random_windows
from qm_vllm_eval.ray.work import UNUSABLE, Answer, Unit

RANDOM_SUFFIX = " (random tokens)"
CHANCE = "chance mIoU"


@dataclass(frozen=True)
class Ego4dTask:
    """See :class:`qm_vllm_eval.ray.work.Task`.

    Attributes:
        annotations, features: as :class:`Ego4dNlq` takes them. width: D that all must have.
        ratios: shares of a clip's features to keep; each below 1 also runs around random tokens.
        most_tokens: longest clip in features; a longer one gets a reason.
        limit: most queries; None: all.
    """

    annotations: str
    features: str
    ratios: tuple[float, ...]
    width: int
    most_tokens: int
    limit: int | None = None
    features_per_second: float = FEATURES_PER_SECOND

    name = "ego4d-nlq"
    metrics = METRICS
    flags = ("zero_length",)

    def units(self) -> Iterator[Unit]:
        """Query by query, each at every ratio; see the protocol."""
        rows = Ego4dNlq(
            Path(self.annotations), Path(self.features), width=self.width,
            features_per_second=self.features_per_second,
        )
        for number, row in enumerate(rows):
            if self.limit is not None and number >= self.limit:
                return
            for ratio in self.ratios:
                for way in WAYS if ratio < 1 else WAYS[:1]:
                    yield self._unit(row, ratio, way)

    def score(self, facts: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
        """Metrics of the five windows, the windows, and what names the query in a submission."""
        found = [(float(start), float(end)) for start, end in answer.report["windows"]]
        truth = (facts["window"][0], facts["window"][1])
        return {
            "way": facts["way"], "clip_uid": facts["clip_uid"],
            "annotation_uid": facts["annotation_uid"], "query_idx": facts["query_idx"],
            "windows": [list(span) for span in found], "zero_length": facts["zero_length"],
            **query_scores(found, truth),
        }

    def settings(self) -> dict[str, Any]:
        """See the protocol."""
        held = asdict(self)
        for name in ("ratios", "limit", "annotations", "features"):
            del held[name]
        return {"task": self.name, "data": Path(self.annotations).name, **held}

    def facts(self) -> dict[str, Any]:
        """See the protocol; with the queries of the file that give no row."""
        left_out = Ego4dNlq(Path(self.annotations), Path(self.features)).left_out()
        return {
            "data": Path(self.annotations).name, "width": self.width,
            "features_per_second": self.features_per_second,
            "average precision": "QVHighlights / ActivityNet protocol, one truth a query",
            "recall": "IoU strictly greater, as the Ego4D NLQ challenge counts",
            "zero_length": "windows shorter than a frame: counted, and found by the same window",
            "left out": left_out,
        }

    def _unit(self, row: NlqRow, ratio: float, way: str) -> Unit:
        row_id = row.row_id + (RANDOM_SUFFIX if way == "random" else "")
        reason = row.reason
        if not reason and row.window is None:
            reason = f"{row.row_id} has no window to score with"
        if not reason and row.features is not None and len(row.features) > self.most_tokens:
            reason = f"the clip has {len(row.features)} features; at most {self.most_tokens} fit"
        if reason:
            return Unit(row_id, ratio, failure=UNUSABLE, reason=reason)
        return Unit(
            row_id, ratio,
            prompt={
                "features": row.features, "query": row.query, "seconds": row.clip_seconds,
                "way": way,
            },
            facts={
                "window": list(row.window or ()), "way": way, "clip_uid": row.clip_uid,
                "annotation_uid": row.annotation_uid, "query_idx": row.query_idx,
                "zero_length": row.zero_length,
            },
        )


def chance(rows: Iterator[NlqRow]) -> dict[str, list[float]]:
    """What five random windows score on each usable row; equal rows, equal windows."""
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for row in rows:
        if row.usable and row.window is not None:
            rng = np.random.default_rng(zlib.crc32(row.row_id.encode()))
            scores = query_scores(random_windows(row.clip_seconds, rng), row.window)
            for name, value in scores.items():
                found[name].append(value)
    return found


def predictions(rows: list[dict[str, Any]], ratio: float, way: str) -> list[Prediction]:
    """What a run's rows say at one ratio and in one way, for a submission."""
    return [
        Prediction(
            row["clip_uid"], row["annotation_uid"], row["query_idx"],
            tuple((start, end) for start, end in row["windows"]),
        )
        for row in rows
        if row["status"] == "ok" and row["ratio"] == ratio and row["way"] == way
    ]
