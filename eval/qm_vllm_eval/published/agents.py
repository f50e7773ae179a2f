"""Tables of what agents and asked documents lose: calls, forms, hints."""

from __future__ import annotations

import csv
from pathlib import Path

from qm_vllm_eval.metrics import retention
from qm_vllm_eval.published.form import Row, figure, markdown
from qm_vllm_eval.published.stored import STUDIES, study

FOLDER = STUDIES / "agents"
BOUNDS = ("none", "plain")


def agents(name: str) -> str:
    """A policy a line: what was kept, the calls of tools, the fields of forms."""
    content = study("agents", name)
    return markdown([
        {
            "policy": row["policy"], "kept": figure(row["kept"]),
            "same function": _share(row["same_name"], row["calls_of_plain"]),
            "arguments parse": _share(row["parses"], row["calls_of_plain"]),
            "same call": _share(row["same_call"], row["calls_of_plain"]),
            "fields right": figure(row["coverage"]),
        }
        for row in content["rows"]
    ])


def agents_said(name: str) -> str:
    """Where the figures of a file are from."""
    content = study("agents", name)
    arguments = content["arguments"]
    return (
        f"{content['model']}, delivery {arguments['delivery']}, {content['rows'][0]['turns']} "
        f"calls, {arguments['forms']} forms, prompts of up to {content['rows'][0]['longest']:,} "
        f"tokens, {content['date'][:10]}, commit {content['commit']['id'][:7]}"
    )


def hints(name: str) -> str:
    """The table of a file that was committed."""
    return hint_table(FOLDER / f"{name}.csv")


def hint_table(file: Path) -> str:
    """A setting a line: retention by task and ratio; the bounds are those with the question."""
    with file.open(encoding="utf-8") as lines:
        held = list(csv.DictReader(lines))
    bounds: dict[tuple[str, ...], dict[str, float]] = {}
    for row in (row for row in held if row["method"] in BOUNDS):
        bounds.setdefault(_question(row), {})[row["method"]] = float(row["nll"])
    cells: dict[tuple[str, str], dict[tuple[str, float], list[tuple[float, float, float]]]] = {}
    for row in held:
        both = bounds.get(_question(row), {})
        if row["method"] in BOUNDS or len(both) < len(BOUNDS):
            continue  # a question that was cut short has no bounds yet
        cells.setdefault((row["setting"], row["method"]), {}).setdefault(
            (row["task"], float(row["ratio"])), [],
        ).append((both["none"], float(row["nll"]), both["plain"]))
    columns = sorted({column for own in cells.values() for column in own})
    table: list[Row] = []
    for (setting, method), own in cells.items():
        line: Row = {"the choice sees": setting, "method": method}
        for task, ratio in columns:
            none, got, plain = zip(*own[task, ratio], strict=True)
            line[f"{task} {ratio:g} (n={len(got)})"] = figure(retention(none, got, plain))
        table.append(line)
    return markdown(table)


def _question(row: Row) -> tuple[str, ...]:
    return row["task"], row["document"], row["question"]


def _share(share: float, count: int) -> str:
    return f"{round(share * count)} of {count}"
