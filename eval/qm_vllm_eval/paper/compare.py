"""The figures of committed runs beside the paper's, for ``eval/results/paper/README.md``.

``python -m qm_vllm_eval.published`` writes them into the page.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qm_vllm_eval.baselines import PAPER_RATES
from qm_vllm_eval.paper.report import shown
from qm_vllm_eval.paper.tables import METRICS, PAPER_1, PAPER_2

RUNS = ("small", "medium")
LOADERS = "smoke"
"""A run whose figures mean nothing, but that the loaders and everything behind them work."""
NAMES = {"ppl": "PPL", "accuracy": "accuracy", "fvd": "Fréchet"}


def figures(folder: Path) -> str:
    """Markdown of Tables 1 to 5: every figure of the runs in ``folder`` beside the paper's."""
    held = {
        run: {n: read_csv(folder / run / f"table{n}.csv") for n in range(1, 6)}
        for run in (*RUNS, LOADERS)
    }
    parts = [
        f"### Table {number}\n\n" + _beside({run: held[run][number] for run in RUNS}, paper)
        for number, paper in ((1, PAPER_1), (2, PAPER_2))
    ]
    for number, names in ((3, _COSTS), (4, _LONG), (5, _OTHER)):
        for run in held:
            if held[run][number]:
                parts.append(f"### Table {number}, {run}\n\n" + _plain(held[run][number], names))
    return "\n".join(parts)


_COSTS = {
    "shape": "shape", "batch": "batch", "method": "method", "tokens_mean": "tokens",
    "kv_mb": "KV MB", "latency_ms": "ms a decoded token", "ttft_ms": "TTFT ms",
    "encoder_ms": "encoder ms", "preprocessing_ms": "preprocessing ms",
    "change_kv_mb": "KV, %", "change_latency": "latency, %", "change_ttft": "TTFT, %",
}
_LONG = {
    "task": "task", "metric": "metric", "baseline": "all tokens", "quickmerge": "QuickMerge++",
    "paper_baseline": "paper, all", "paper_quickmerge": "paper, QuickMerge++",
    "tokens_baseline": "tokens", "tokens_quickmerge": "kept", "rows": "rows", "reason": "",
}
_OTHER = {
    "task": "task", "metric": "metric", "baseline": "all tokens", "quickmerge": "QuickMerge++",
    "compression": "N / K", "rows": "rows", "data": "data", "paper_baseline": "paper, all",
    "paper_quickmerge": "paper, QuickMerge++", "paper_compression": "paper, N / K", "reason": "",
}


def _beside(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], paper: Mapping[str, tuple[float, ...]]
) -> str:
    """Rows by method; for each metric one column a run that has it, then the paper's."""
    columns: list[tuple[str, str, str]] = []
    for metric in METRICS.values():
        for run, rows in runs.items():
            if any(row.get(metric) is not None for row in rows):
                columns.append((f"{NAMES[metric]}, {run}", run, metric))
        columns.append((f"{NAMES[metric]}, paper", "", metric))
    columns += [(f"N / K, {run}", run, "rate") for run, rows in runs.items() if rows]
    columns.append(("N / K, paper", "", "rate"))
    methods = list(dict.fromkeys(row["method"] for rows in runs.values() for row in rows))
    lines = [_line(["method", *(title for title, _, _ in columns)]),
             _line(["---"] * (len(columns) + 1))]
    for method in methods:
        cells = [method]
        for _, run, metric in columns:
            if run:
                row = next((row for row in runs[run] if row["method"] == method), {})
                cells.append(_rates(row) if metric == "rate" else shown(row, metric))
            else:
                printed: dict[str, Any] = dict(
                    zip(METRICS.values(), paper.get(method, ()), strict=False)
                )
                printed["rate"] = PAPER_RATES.get(method, "")
                cells.append(str(printed.get(metric, "")))
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def _rates(row: Mapping[str, Any]) -> str:
    """N / K of each task that was run, in their order."""
    found = (row.get(f"rate_{task}") for task in METRICS)
    return " / ".join(f"{rate:.2f}" for rate in found if rate is not None)


def _plain(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    used = [name for name in names if any(row.get(name) not in (None, "") for row in rows)]
    lines = [_line(names[name] for name in used), _line("---" for _ in used)]
    return "\n".join([*lines, *(_line(shown(row, name) for name in used) for row in rows)]) + "\n"


def read_csv(file: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file, numbers as numbers, empty cells as None; [] if there is no file."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8") as lines:
        return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(lines)]


def _value(text: str) -> Any:
    if text == "":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _line(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"
