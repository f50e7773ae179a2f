"""Parts of the study's report: facts, heat-coloured tables, the table of all results."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import pandas as pd

from qm_vllm_eval.row import OK
from qm_vllm_eval.study.plot_style import styles
from qm_vllm_eval.study.results import NONE, PLAIN, method_order

MIB = 2.0**20
TABLE = (
    ("task", "Task", "text"), ("family", "Family", "text"), ("length", "Length", "int"),
    ("query_visible", "Question", "yes"), ("method", "Method", "text"),
    ("ratio", "Ratio", "share"), ("kept_ratio", "Kept", "figure"), ("samples", "Samples", "int"),
    ("retention", "Retention", "figure"), ("retention_lo", "from", "figure"),
    ("retention_hi", "to", "figure"), ("match", "Match", "figure"), ("exact", "Exact", "figure"),
    ("nll", "NLL, nats", "figure"), ("kv_bytes", "KV, MiB", "figure"),
    ("seconds", "Seconds", "figure"), ("status", "Status", "text"),
)
"""Columns of the table of all results: name, heading, kind."""
FILTERS = ("family", "length", "query_visible", "method", "ratio")


def ratios(families: pd.DataFrame) -> list[float]:
    """Ratios that any method but the references was asked for, ascending."""
    asked = families.loc[~families["method"].isin([NONE, PLAIN]), "ratio"]
    return sorted({float(ratio) for ratio in asked})


def heat_tables(part: pd.DataFrame, ratio_list: Iterable[float], looks: Iterable[str]) -> str:
    """A table per ratio for one length and query mode: methods by families, retention.

    Args:
        part: lines of the table of families.
        looks: all methods of the study, so that colours are those of the figures.
    """
    colours = {name: style.colour for name, style in styles(list(looks)).items()}
    return "".join(_heat(part, ratio, colours) for ratio in ratio_list)


def ratio_buttons(ratio_list: list[float]) -> str:
    """Buttons that choose the ratio of all tables; the middle one is pressed at first."""
    middle = len(ratio_list) // 2
    made = "".join(
        f'<button type="button" data-ratio="{ratio:g}"'
        f'{" data-first" if place == middle else ""} aria-pressed="false">{ratio:.4g}</button>'
        for place, ratio in enumerate(ratio_list)
    )
    return (
        '<div class="controls ratios only-script" role="group" aria-label="Ratio of the tables">'
        f"<span>Tables at ratio</span>{made}</div>"
    )


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
    """Names and values side by side."""
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text(value))}</dd></div>" for name, value in pairs
    )
    return f'<dl class="facts">{items}</dl>'


def pairs_table(pairs: Iterable[tuple[str, Any]]) -> str:
    """Names and values one below the other."""
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(text(value))}</td></tr>'
        for name, value in pairs
    )
    return f'<table class="plain"><tbody>{lines}</tbody></table>' if lines else "<p>None.</p>"


def text(value: Any) -> str:
    """A JSON value as people write it."""
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def failure_table(failed: pd.DataFrame) -> str:
    """What failed, from :func:`qm_vllm_eval.study.results.failures`."""
    if failed.empty:
        return "<p>No row failed.</p>"
    lines = "".join(
        f"<tr><td>{escape(str(line.method))}</td>"
        f'<td class="num">{line.rows:,}</td><td>{escape(str(line.reason))}</td>'
        f"<td>{escape(str(line.tasks))}</td></tr>"
        for line in failed.itertuples()
    )
    return (
        '<div class="scroll"><table class="plain"><thead><tr><th>Method</th>'
        '<th class="num">Rows</th><th>Reason</th><th>Tasks</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def results_table(results: pd.DataFrame) -> str:
    """The table of all results, filled in by the script from data within the page."""
    names = [name for name, _, _ in TABLE]
    frame = results[names].assign(kv_bytes=results["kv_bytes"] / MIB)
    rows = [[_json(value) for value in line] for line in frame.itertuples(index=False, name=None)]
    classes = [
        "first" if name == "task" else "wide" if name == "status"
        else "" if kind in ("text", "yes") else "num"
        for name, _, kind in TABLE
    ]
    data = {"rows": rows, "kinds": [kind for _, _, kind in TABLE], "classes": classes}
    packed = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    heads = "".join(
        f'<th class="{kind}" scope="col"><button type="button">{escape(label)}</button></th>'
        for (_, label, _), kind in zip(TABLE, classes, strict=True)
    )
    chosen = "".join(
        f'<select data-column="{names.index(name)}" aria-label="{TABLE[names.index(name)][1]}">'
        f'<option value="">{TABLE[names.index(name)][1]}: all</option></select>'
        for name in FILTERS
    )
    return (
        '<div class="controls only-script"><input type="search" id="search" '
        f'placeholder="Words in any column" aria-label="Words in any column">{chosen}'
        '<span id="count" role="status"></span></div>'
        "<noscript><p>This table needs scripts; results.csv holds the same.</p></noscript>"
        f'<div class="scroll"><table id="all"><thead><tr>{heads}</tr></thead><tbody></tbody>'
        '</table></div><p class="only-script"><button type="button" id="more">Show more</button>'
        "</p>"
        f'<script type="application/json" id="data">{packed}</script>'
    )


def _heat(part: pd.DataFrame, ratio: float, colours: Mapping[str, str]) -> str:
    families = sorted(set(part["family"]))
    plain = part[part["method"] == PLAIN].set_index("family")["samples"].to_dict()
    at_ratio = part[(part["ratio"] == ratio) & ~part["method"].isin([NONE, PLAIN])]
    cells = {(line["method"], line["family"]): line for line in at_ratio.to_dict("records")}
    best = at_ratio.groupby("family")["retention"].max().to_dict()
    lines = []
    for method in method_order(list(at_ratio["method"])):
        made = "".join(
            _cell(cells.get((method, name)), best.get(name), plain.get(name, 0))
            for name in families
        )
        own = ' class="own"' if method.startswith("quickmerge") else ""
        dot = f'<span class="swatch" style="background:{colours[method]}"></span>'
        lines.append(f'<tr{own}><th scope="row">{dot}{escape(method)}</th>{made}</tr>')
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in families)
    table = (
        f'<div class="scroll"><table class="heat"><thead><tr><th scope="col">Method</th>{heads}'
        f"</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        if lines else "<p>No method was asked for this ratio here.</p>"
    )
    return (
        f'<div data-table="{ratio:g}"><h3>Retention at ratio {ratio:.4g}</h3>{table}'
        '<p class="detail" role="status"></p></div>'
    )


def _cell(line: Mapping[str, Any] | None, best: float | None, expected: int) -> str:
    if line is None:
        return '<td class="void" title="not measured">·</td>'
    place = f"{line['method']}, {line['family']}: "
    value = float(line["retention"])
    if math.isnan(value):
        reason = line["status"] if line["samples"] == 0 else "retention is not defined"
        return f'<td class="void" title="{escape(place + str(reason))}">–</td>'
    hint = (
        f"{place}retention {value:.3f}, 95 % interval {line['retention_lo']:.3f} to "
        f"{line['retention_hi']:.3f}; kept {line['kept_ratio']:.1%}, "
        f"{line['kv_bytes'] / MIB:.2f} MiB; {line['samples']} samples"
    )
    if not math.isnan(line["match"]):
        hint += f"; match {line['match']:.3f}"
    if line["status"] != OK:
        hint += f"; {line['status']}"
    classes = ("neg " if value < 0 else "") + ("best" if value == best else "")
    strength = min(abs(value), 1.0) * 100
    mark = "*" if line["samples"] < expected else ""
    return (
        f'<td class="{classes.strip()}" style="--v:{strength:.0f}" title="{escape(hint)}">'
        f"{_signed(value)}{mark}</td>"
    )


def _signed(value: float) -> str:
    """Two digits, with a real minus sign, and none before zero."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def _json(value: Any) -> Any:
    """A cell as JSON has it: NaN becomes null, other figures get six digits."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
