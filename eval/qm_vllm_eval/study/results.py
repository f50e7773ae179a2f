"""From rows to the tables of a study: one line per task, and one per family."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from qm_vllm_eval.metrics import bootstrap_retention, retention
from qm_vllm_eval.row import OK

NONE, PLAIN = "none", "plain"
"""The two references: nothing of the context is kept, and all of it."""
ALL_TASKS = "*"
COLUMNS = [
    "task", "family", "query_visible", "method", "ratio", "kept_ratio", "samples", "nll", "match",
    "retention", "retention_lo", "retention_hi", "kv_bytes", "seconds", "length", "exact",
    "status", "evidence_kept",
]
MEANS = ["kept_ratio", "nll", "match", "kv_bytes", "seconds", "exact", "evidence_kept"]
TASK_GROUP = ["task", "family", "length", "query_visible"]
FAMILY_GROUP = ["family", "length", "query_visible"]


def results_by_task(rows: pd.DataFrame, *, seed: int = 0, resamples: int = 2000) -> pd.DataFrame:
    """One line per (task, length, query_visible, method, ratio), columns :data:`COLUMNS`.

    The figures are means over the samples that worked, ``samples`` of them. ``retention`` is
    paired: it uses the samples for which none, plain and the method all worked, and is NaN where
    there is none or where plain gains nothing over none. ``retention_lo`` and ``retention_hi``
    bound its 95 % bootstrap interval. ``nll`` is in nats per token, ``kv_bytes`` in bytes per
    prompt, ``seconds`` per prompt. ``status`` is "ok", "ok (3 of 16 failed: reason)", or the
    reason if no sample worked.

    Args:
        rows: what :meth:`qm_vllm_eval.study.store.Store.rows` gives.
        seed, resamples: of the bootstrap.
    """
    return _table(rows, TASK_GROUP, seed, resamples)


def results_by_family(rows: pd.DataFrame, *, seed: int = 0, resamples: int = 2000) -> pd.DataFrame:
    """The same over all samples of a family; ``task`` is "*". There is no mean over families."""
    return _table(rows, FAMILY_GROUP, seed, resamples)


def failures(rows: pd.DataFrame) -> pd.DataFrame:
    """What failed: method, reason, number of rows, and the tasks concerned (sorted, by comma)."""
    failed = rows[rows["status"] != OK].assign(reason=lambda frame: frame["status"].map(_short))
    lines = [
        {"method": method, "reason": reason, "rows": len(group),
         "tasks": ", ".join(sorted(set(group["task"])))}
        for (method, reason), group in failed.groupby(["method", "reason"], sort=True)
    ]
    return pd.DataFrame(lines, columns=["method", "reason", "rows", "tasks"])


def write_results(results: pd.DataFrame, families: pd.DataFrame, folder: Path) -> list[Path]:
    """Write results.csv and families.csv. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "results.csv", folder / "families.csv"]
    for table, path in zip((results, families), paths, strict=True):
        table.to_csv(path, index=False, float_format="%.6g")
    return paths


def method_order(methods: Sequence[str]) -> list[str]:
    """The references, then quickmerge's methods, then the others; each by name."""
    def place(name: str) -> tuple[int, str]:
        if name in (NONE, PLAIN):
            return (0, name)
        return (1 if name.startswith("quickmerge") else 2, name)

    return sorted(set(methods), key=place)


def _table(rows: pd.DataFrame, group: list[str], seed: int, resamples: int) -> pd.DataFrame:
    lines: list[dict[str, object]] = []
    for place, part in rows.groupby(group, sort=True):
        none, plain = _reference(part, NONE), _reference(part, PLAIN)
        names = dict(zip(group, place, strict=True))
        names.setdefault("task", ALL_TASKS)
        for (method, ratio), cell in part.groupby(["method", "ratio"], sort=True):
            worked = cell[cell["status"] == OK]
            line = names | {"method": method, "ratio": ratio, "samples": len(worked)}
            line |= {name: worked[name].mean() for name in MEANS}
            line |= _retention(worked, none, plain, seed, resamples)
            line["status"] = _status(cell)
            lines.append(line)
    table = pd.DataFrame(lines, columns=COLUMNS)
    order = {name: place for place, name in enumerate(method_order(list(table["method"])))}
    return table.sort_values(
        ["family", "task", "length", "query_visible", "method", "ratio"],
        key=lambda column: column.map(order) if column.name == "method" else column,
        ignore_index=True,
    )


def _reference(part: pd.DataFrame, method: str) -> dict[str, float]:
    """NLL per sample of a reference, where it worked."""
    chosen = part[(part["method"] == method) & (part["status"] == OK) & part["nll"].notna()]
    return dict(zip(chosen["sample_id"], chosen["nll"], strict=True))


def _retention(
    worked: pd.DataFrame, none: dict[str, float], plain: dict[str, float], seed: int,
    resamples: int,
) -> dict[str, float]:
    figures = dict.fromkeys(("retention", "retention_lo", "retention_hi"), math.nan)
    pairs = [
        (none[sample], nll, plain[sample])
        for sample, nll in zip(worked["sample_id"], worked["nll"], strict=True)
        if sample in none and sample in plain and not math.isnan(nll)
    ]
    if pairs:
        arrays = list(np.asarray(pairs, dtype=float).T)
        figures["retention"] = retention(*arrays)
        if not math.isnan(figures["retention"]):
            low, high = bootstrap_retention(*arrays, seed=seed, resamples=resamples)
            figures |= {"retention_lo": low, "retention_hi": high}
    return figures


def _status(cell: pd.DataFrame) -> str:
    failed = [_short(status) for status in cell["status"] if status != OK]
    if not failed:
        return OK
    reasons = Counter(failed)
    reason = reasons.most_common(1)[0][0]
    if len(reasons) > 1:
        reason += f", and {len(reasons) - 1} more reason{'s' if len(reasons) > 2 else ''}"
    if len(failed) == len(cell):
        return reason
    return f"{OK} ({len(failed)} of {len(cell)} failed: {reason})"


def _short(reason: str, limit: int = 200) -> str:
    """The reason on one line, cut where it is long."""
    text = " ".join(str(reason).split()) or "failed without a reason"
    return text if len(text) <= limit else text[: limit - 1] + "…"
