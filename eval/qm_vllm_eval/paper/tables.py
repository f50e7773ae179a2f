"""Tables 1 and 2: rows from the cells that are measured, beside the paper's figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from qm_vllm_eval.baselines import ABLATIONS, CONTROLS, PAPER_RATES, TABLE_1

LEAD = "QuickMerge++"
METRICS = {"text": "ppl", "image": "accuracy", "video": "fvd"}
"""What a task is judged by."""
BETTER = {"ppl": -1, "accuracy": 1, "fvd": -1}
"""-1: lower is better."""

PAPER_1 = {
    "Fixed Patches": (21.4, 76.2, 108.4), "VQ-VAE": (19.8, 74.9, 97.2),
    "Token-Free": (17.9, 76.3, 89.7), "TokenLearner": (18.6, 77.0, 94.1),
    LEAD: (17.1, 78.1, 85.6),
}
PAPER_2 = {
    LEAD: (17.1, 78.1, 85.6), "- entropy budget": (18.4, 76.5, 91.0),
    "- AR prior": (17.9, 76.9, 88.3), "- norm masking": (18.7, 75.2, 93.5),
}
"""PPL, accuracy and FVD as the paper prints them."""

Cell = Mapping[str, Any]


def table_1(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Methods, then controls: mean and deviation over the seeds, and the paper's figures.

    A method without a cell has no row.
    """
    there = {cell["method"] for cell in cells}
    return [
        _row(name, cells, PAPER_1.get(name)) for name in (*TABLE_1, *CONTROLS) if name in there
    ]


def table_2(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The full model and what is left without each part; ``_change`` is paired by seed.

    A change is that of the ablation against the full model, mean over the seeds, and ``_same``
    says whether all seeds agree on its sign.
    """
    rows = []
    for name in (LEAD, *ABLATIONS):
        row = _row(name, cells, PAPER_2.get(name))
        for metric in METRICS.values():
            changes = paired(cells, name, LEAD, metric) if name != LEAD else []
            row[f"{metric}_change"] = statistics.fmean(changes) if changes else None
            signs = {change > 0 for change in changes}
            row[f"{metric}_same"] = len(signs) == 1 if changes else None
        rows.append(row)
    return rows


def paired(cells: Sequence[Cell], one: str, other: str, metric: str) -> list[float]:
    """Differences ``one - other`` of a metric, seed by seed."""
    held = {
        (cell["method"], cell["seed"]): cell[metric] for cell in cells
        if cell.get(metric) is not None
    }
    return [
        value - held[(other, seed)] for (method, seed), value in sorted(held.items())
        if method == one and (other, seed) in held
    ]


def _row(
    name: str, cells: Sequence[Cell], paper: tuple[float, float, float] | None
) -> dict[str, Any]:
    mine = [cell for cell in cells if cell["method"] == name]
    row: dict[str, Any] = {"method": name}
    for task, metric in METRICS.items():
        values = [cell[metric] for cell in mine if cell["task"] == task]
        row[metric], row[f"{metric}_std"] = mean_std(values)
        row[f"rate_{task}"] = mean_std([c["rate"] for c in mine if c["task"] == task])[0]
    seeds = sorted({cell["seed"] for cell in mine})
    row["rate"], row["rate_std"] = mean_std([
        statistics.fmean(cell["rate"] for cell in mine if cell["seed"] == seed) for seed in seeds
    ])
    row["seeds"] = len(seeds)
    for metric, value in zip(METRICS.values(), paper or (None, None, None), strict=True):
        row[f"paper_{metric}"] = value
    row["paper_rate"] = PAPER_RATES.get(name)
    return row


def mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and deviation (S - 1); None where there is nothing, 0 for one value."""
    if not values:
        return None, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
