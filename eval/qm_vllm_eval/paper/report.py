"""What a run leaves: table1.csv to table5.csv, pictures, a page."""

from __future__ import annotations

import base64
import csv
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qm_vllm_eval.paper import plots, tables
from qm_vllm_eval.paper.scale import Scale
from qm_vllm_eval.study.page_style import STYLE

Rows = Sequence[Mapping[str, Any]]

TITLES = {
    1: "Table 1: quality at a compression, text, image, video",
    2: "Table 2: QuickMerge++ without each part",
    3: "Table 3: latency, KV memory, tokens, in vLLM",
    4: "Table 4: long inputs",
    5: "Table 5: other tasks, nothing retrained",
}
SHOWN = {
    1: ("method", "ppl", "accuracy", "fvd", "rate", "paper_ppl", "paper_accuracy", "paper_fvd",
        "paper_rate"),
    2: ("method", "ppl", "ppl_change", "accuracy", "accuracy_change", "fvd", "fvd_change",
        "paper_ppl", "paper_accuracy", "paper_fvd"),
    3: ("shape", "method", "batch", "tokens_mean", "kv_mb", "latency_ms", "ttft_ms",
        "preprocessing_ms", "change_tokens", "change_kv_mb", "change_latency", "change_ttft"),
    4: ("task", "metric", "baseline", "quickmerge", "difference", "tokens_baseline",
        "tokens_quickmerge", "rows", "paper_baseline", "paper_quickmerge", "reason"),
    5: ("task", "metric", "baseline", "quickmerge", "difference", "compression", "rows", "data",
        "paper_baseline", "paper_quickmerge", "paper_compression", "reason"),
}
"""Columns of the page and of tables.md; the CSV files have all."""


def write(
    out: Path, scale: Scale, cells: Rows, facts: Mapping[str, Any],
    others: Mapping[int, Rows],
) -> list[Path]:
    """All files of a run from what was measured.

    Args:
        cells: of Tables 1 and 2. facts: of their tasks. others: rows of Tables 3 to 5.

    Returns:
        The files, the page first. A table without rows has no file.
    """
    out.mkdir(parents=True, exist_ok=True)
    held: dict[int, Rows] = {number: rows for number, rows in others.items() if rows}
    if cells:
        held |= {1: tables.table_1(cells), 2: tables.table_2(cells)}
        write_csv(out / "cells.csv", cells)
    written = []
    for number, rows in sorted(held.items()):
        written.append(write_csv(out / f"table{number}.csv", rows))
    pictures = plots.draw(out / "plots", held)
    text = markdown(held, facts)
    (out / "tables.md").write_text(text, encoding="utf-8")
    page = out / "report.html"
    page.write_text(_page(scale, held, facts, pictures), encoding="utf-8")
    return [page, out / "tables.md", *written, *pictures]


def write_csv(file: Path, rows: Rows) -> Path:
    """Rows as CSV; columns in the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with file.open("w", newline="", encoding="utf-8") as target:
        writer = csv.DictWriter(target, columns)
        writer.writeheader()
        writer.writerows(rows)
    return file


def markdown(held: Mapping[int, Rows], facts: Mapping[str, Any]) -> str:
    """Every table in Markdown, then what the tasks are made of."""
    parts = []
    for number, rows in sorted(held.items()):
        names = _columns(number, rows)
        lines = [_line(_heading(name) for name in names), _line("---" for _ in names)]
        lines += [_line(shown(row, name) for name in names) for row in rows]
        parts.append(f"## {TITLES[number]}\n\n" + "\n".join(lines) + "\n")
    if facts:
        parts.append("## Tasks\n\n" + "\n".join(
            f"- {task}: " + ", ".join(f"{k} {_number(v)}" for k, v in about.items())
            for task, about in facts.items()
        ) + "\n")
    return "\n".join(parts)


def shown(row: Mapping[str, Any], name: str) -> str:
    """A cell's text: with its deviation or its range where the row has one."""
    value = row.get(name)
    if value is None:
        return ""
    text = _number(value)
    if row.get(f"{name}_std") is not None:
        return f"{text} ± {_number(row[f'{name}_std'])}"
    if row.get(f"{name}_low") is not None:
        return f"{text} ({_number(row[f'{name}_low'])} to {_number(row[f'{name}_high'])})"
    if name.endswith("_change"):
        same = row.get(name.removesuffix("_change") + "_same")
        return f"{value:+.3g}" + ("" if same else " (seeds differ)")
    return text


def _columns(number: int, rows: Rows) -> list[str]:
    return [name for name in SHOWN[number] if any(row.get(name) is not None for row in rows)]


def _heading(name: str) -> str:
    words = {"ppl": "PPL", "fvd": "FVD", "kv": "KV", "mb": "MB", "ttft": "TTFT", "ms": "(ms)",
             "rate": "N / K"}
    return " ".join(words.get(part, part) for part in name.split("_"))


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if size >= 100:
        return f"{value:,.1f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def _line(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def _page(
    scale: Scale, held: Mapping[int, Rows], facts: Mapping[str, Any], pictures: Sequence[Path]
) -> str:
    by_table = {int(path.stem.removeprefix("table")): path for path in pictures}
    parts = []
    for number, rows in sorted(held.items()):
        names = _columns(number, rows)
        head = "".join(f"<th>{html.escape(_heading(name))}</th>" for name in names)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(shown(row, n))}</td>' for n in names)}</tr>"
            for row in rows
        )
        picture = _embedded(by_table[number]) if number in by_table else ""
        parts.append(
            f"<h2 id=table{number}>{html.escape(TITLES[number])}</h2>{picture}"
            f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            "</div>"
        )
    tasks = "".join(
        f"<h3>{html.escape(task)}</h3><dl class=facts>" + "".join(
            f"<div><dt>{html.escape(name.replace('_', ' '))}</dt>"
            f"<dd>{html.escape(_number(value))}</dd></div>" for name, value in about.items()
        ) + "</dl>" for task, about in facts.items()
    )
    links = "".join(f"<li><a href=#table{n}>Table {n}</a></li>" for n in sorted(held))
    lead = (
        f"Scale {scale.name}: decoder of {scale.layers} layers, width {scale.width}, "
        f"{scale.steps} steps of {scale.batch} sequences, {len(scale.seeds)} seeds. "
        "Figures named paper are the paper's own, on other data and encoders; the others are "
        "measured here."
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>The paper's tables</title><style>{STYLE}</style>"
        f"<h1>The paper's tables, measured</h1><p class=lead>{html.escape(lead)}</p>"
        f"<nav><ul>{links}</ul></nav>{''.join(parts)}<h2>Tasks</h2>{tasks}</html>\n"
    )


def _embedded(picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode()
    return f"<figure><img style='max-width:100%' alt='{picture.stem}' " \
           f"src='data:image/png;base64,{data}'></figure>"
