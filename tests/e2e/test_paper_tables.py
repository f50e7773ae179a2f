"""``qm-vllm eval paper-tables --scale smoke``: all five tables from one command."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import pytest

from qm_vllm_eval.baselines import METHODS
from qm_vllm_eval.paper.scale import SMOKE

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def paper_tables(out, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "qm_vllm.cli.main", "eval", "paper-tables", "--scale", "smoke",
         "--out", str(out), *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"},
    )


def rows(file):
    with file.open() as lines:
        return list(csv.DictReader(lines))


def test_smoke_writes_five_tables_and_goes_on_where_it_was(smollm2, tmp_path):
    done = paper_tables(tmp_path, "--workers", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    held = {n: rows(tmp_path / f"table{n}.csv") for n in range(1, 6)}
    cells = rows(tmp_path / "cells.csv")
    assert len(cells) == 3 * len(METHODS) * len(SMOKE.seeds)
    ours = next(row for row in held[1] if row["method"] == "QuickMerge++")
    assert 1.5 < float(ours["rate"]) < 3.5
    assert all(float(ours[name]) > 0 for name in ("ppl", "accuracy", "fvd"))
    assert held[2][0]["method"] == "QuickMerge++"
    plain, merged = held[3][:2]
    assert (plain["method"], merged["method"]) == ("baseline", "quickmerge")
    assert float(merged["kv_mb"]) < float(plain["kv_mb"])
    assert {row["task"] for row in held[4]} >= {"BookSum", "Ego4D-NLQ"}
    assert len(held[5]) == 4
    for row in held[5]:
        assert row["reason"] or float(row["compression"]) > 1, row
    assert (tmp_path / "report.html").stat().st_size > 10_000
    again = paper_tables(tmp_path, "--tables", "1,2,3")
    assert again.returncode == 0, again.stderr[-3000:]
    assert rows(tmp_path / "cells.csv") == cells
    assert len(json.loads((tmp_path / "run_meta.json").read_text())["runs"]) == 2
