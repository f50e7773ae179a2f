"""Rows with figures that are easy to check by hand."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pandas as pd

from qm_vllm_eval.row import Row


def row(method: str, ratio: float, nll: float, index: int = 0, **changes: Any) -> Row:
    """A row of one sample; 1000 tokens, 100 KiB of KV at full length."""
    task, visible = changes.get("task", "needle"), changes.get("query_visible", False)
    values: dict[str, Any] = {
        "sample_id": f"{task}-1000-{visible}-report-{index}", "task": task, "family": "retrieval",
        "query_visible": visible, "haystack": "essays", "length": 1000, "index": index,
        "method": method, "ratio": ratio, "prompt_tokens": 1000, "kept_tokens": 1000 * ratio,
        "kept_ratio": ratio, "nll": nll, "exact": 0.0,
        "match": math.nan if method == "none" else 0.5, "kv_bytes": 102_400 * ratio,
        "seconds": 0.5, "prediction": "a", "target": "b",
    }
    return Row(**(values | changes))


def failed(method: str, ratio: float, index: int, reason: str, **changes: Any) -> Row:
    """A row that did not work."""
    nothing = dict.fromkeys(("kept_tokens", "kept_ratio", "exact", "match", "kv_bytes", "seconds"),
                            math.nan)
    return row(method, ratio, math.nan, index, status=reason, **nothing, **changes)


def study(samples: int = 4, **changes: Any) -> list[Row]:
    """none, plain, quickmerge (retention 0.75 and 0.5) and random (-1), all per sample equal."""
    rows: list[Row] = []
    for index in range(samples):
        base, full = 5.0 + index, 1.0 + index
        rows += [
            row("none", 0.0, base, index, **changes),
            row("plain", 1.0, full, index, **changes),
            row("quickmerge", 0.5, base - 3, index, **changes),
            row("quickmerge", 0.25, base - 2, index, **changes),
            row("random", 0.25, base + 4, index, **changes),
        ]
    return rows


def frame(rows: list[Row]) -> pd.DataFrame:
    """As ``Store.rows`` gives them."""
    return pd.DataFrame([asdict(one) for one in rows])
