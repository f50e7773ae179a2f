"""The published figures of the paper's tables are those of the committed CSV files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from qm_vllm_eval.paper import compare, tables

RESULTS = Path(__file__).parents[3] / "eval" / "results" / "paper"


def test_the_readme_s_tables_are_those_of_the_files():
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    between = text.split("<!-- begin generated: paper -->")[1].split("<!-- end generated -->")[0]
    assert between.strip() == compare.figures(RESULTS).strip()


@pytest.mark.parametrize("run", compare.RUNS)
def test_tables_follow_from_the_cells(run):
    with (RESULTS / run / "cells.csv").open() as lines:
        cells = [{name: compare._value(text) for name, text in row.items()}
                 for row in csv.DictReader(lines)]
    assert len({(cell["task"], cell["method"], cell["seed"]) for cell in cells}) == len(cells)
    for number, make in ((1, tables.table_1), (2, tables.table_2)):
        wanted = {row["method"]: row for row in make(cells)}
        for row in compare.read_csv(RESULTS / run / f"table{number}.csv"):
            for name, value in wanted[row["method"]].items():
                if isinstance(value, float):
                    assert row[name] == pytest.approx(value), (row["method"], name)


@pytest.mark.parametrize("run", compare.RUNS)
def test_runs_say_when_and_on_what(run):
    held = json.loads((RESULTS / run / "run_meta.json").read_text())
    assert held["runs"]
    for one in held["runs"]:
        assert one["ended"] > one["started"]
        assert one["hardware"]["cpu"]
        assert one["versions"]["torch"]
