"""The retention of every method as Markdown tables, for a README."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from qm_vllm_eval.study.plots import heading
from qm_vllm_eval.study.results import NONE, PLAIN, method_order

NAME = "tables.md"


def write_tables(families: pd.DataFrame, folder: Path) -> Path:
    """Write tables.md: per length, query mode and ratio, methods by families.

    A cell is the retention with its 95 % interval; a method that has one budget alone is shown
    in every table, since it is to be compared with all.
    """
    parts = ["# Retention by family\n"]
    for (length, visible), part in families.groupby(["length", "query_visible"], sort=True):
        asked = sorted(set(part["ratio"]) - {0.0, 1.0}, reverse=True)
        names = sorted(set(part["family"]))
        parts.append(f"## {heading('retention', int(length), bool(visible))}\n")
        parts.append(_plain_line(part, names))
        for ratio in asked or [1.0]:
            parts.append(f"### Ratio {ratio:g}\n\n{_table(part, names, ratio)}\n")
    target = folder / NAME
    target.write_text("\n".join(parts), encoding="utf-8")
    return target


def _plain_line(part: pd.DataFrame, names: list[str]) -> str:
    """Samples, and the answers' NLL and match of the full prompt and of none, per family."""
    lines = [_row(["", *names]), _row(["---"] * (len(names) + 1))]
    for title, method, column, form in (
        ("samples", PLAIN, "samples", "{:.0f}"),
        ("NLL, full prompt", PLAIN, "nll", "{:.2f}"),
        ("NLL, no context", NONE, "nll", "{:.2f}"),
        ("match, full prompt", PLAIN, "match", "{:.2f}"),
    ):
        own = part[part["method"] == method].set_index("family")[column]
        lines.append(_row([title, *(_number(own.get(name), form) for name in names)]))
    return "\n".join(lines) + "\n"


def _table(part: pd.DataFrame, names: list[str], ratio: float) -> str:
    at = part[(part["ratio"] == ratio) | (part["ratio"] == 1.0)]
    at = at[~at["method"].isin([NONE, PLAIN])]
    lines = [_row(["method", "kept", *names]), _row(["---"] * (len(names) + 2))]
    for method in method_order(list(at["method"])):
        own = at[at["method"] == method].set_index("family")
        own = own[own["ratio"] == own["ratio"].min()]
        kept = _number(own["kept_ratio"].mean(), "{:.3f}")
        lines.append(_row([method, kept, *(_cell(own, name) for name in names)]))
    return "\n".join(lines)


def _cell(own: pd.DataFrame, name: str) -> str:
    if name not in own.index:
        return ""
    found = own.loc[name]
    text = _number(found["retention"], "{:.2f}")
    if text and not math.isnan(found["retention_lo"]):
        text += f" [{found['retention_lo']:.2f}, {found['retention_hi']:.2f}]"
    return text


def _number(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else form.format(value)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
