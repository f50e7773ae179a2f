"""Tables of a study, with figures that were worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from qm_vllm_eval.study.results import (
    COLUMNS,
    failures,
    results_by_family,
    results_by_task,
    write_results,
)
from tests.unit.eval.study_rows import failed, frame, row, study


def line(table: pd.DataFrame, method: str, ratio: float, **where: object) -> pd.Series:
    chosen = table[(table["method"] == method) & (table["ratio"] == ratio)]
    for name, value in where.items():
        chosen = chosen[chosen[name] == value]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_figures_by_hand() -> None:
    table = results_by_task(frame(study()))
    assert list(table.columns) == COLUMNS
    assert len(table) == 5
    half = line(table, "quickmerge", 0.5)
    # NLL 2, 3, 4, 5; none is 3 above, plain 1 below: 3 of 4 nats are kept.
    assert half["nll"] == pytest.approx(3.5)
    assert half["retention"] == pytest.approx(0.75)
    assert half["retention_lo"] == pytest.approx(0.75)
    assert half["retention_hi"] == pytest.approx(0.75)
    assert half["samples"] == 4
    assert half["kv_bytes"] == pytest.approx(51_200)
    assert (half["match"], half["exact"], half["seconds"], half["length"]) == (0.5, 0.0, 0.5, 1000)
    assert half["status"] == "ok"
    assert line(table, "random", 0.25)["retention"] == pytest.approx(-1.0)
    assert line(table, "none", 0.0)["retention"] == pytest.approx(0.0)
    assert line(table, "plain", 1.0)["retention"] == pytest.approx(1.0)
    assert math.isnan(line(table, "none", 0.0)["match"])


def test_retention_is_paired() -> None:
    rows = study(samples=3)
    # Sample 3 has no plain, so it counts for the mean NLL and not for the retention.
    rows += [row("none", 0.0, 100.0, 3), row("quickmerge", 0.5, 50.0, 3)]
    half = line(results_by_task(frame(rows)), "quickmerge", 0.5)
    assert half["samples"] == 4
    assert half["nll"] == pytest.approx((2 + 3 + 4 + 50) / 4)
    assert half["retention"] == pytest.approx(0.75)


def test_retention_weighs_samples_by_their_benefit() -> None:
    rows = [
        row("none", 0.0, 2.0, 0), row("plain", 1.0, 1.0, 0), row("a", 0.5, 1.0, 0),
        row("none", 0.0, 4.0, 1), row("plain", 1.0, 1.0, 1), row("a", 0.5, 4.0, 1),
    ]
    found = line(results_by_task(frame(rows)), "a", 0.5)
    assert found["retention"] == pytest.approx(0.25)  # (3 - 2.5) / (3 - 1)
    assert found["retention_lo"] == pytest.approx(0.0)
    assert found["retention_hi"] == pytest.approx(1.0)


def test_no_reference_no_retention() -> None:
    rows = [one for one in study() if one.method != "plain"]
    half = line(results_by_task(frame(rows)), "quickmerge", 0.5)
    assert math.isnan(half["retention"])
    assert math.isnan(half["retention_lo"])
    assert half["nll"] == pytest.approx(3.5)


def test_failed_rows_say_why() -> None:
    rows = study()
    rows += [failed("peer", 0.5, index, "not installed:\n a package") for index in range(4)]
    rows += [failed("shaky", 0.5, index, "out of memory") for index in range(3)]
    rows += [row("shaky", 0.5, 8.0 - 3, 3)]
    rows += [failed("other", 0.5, 0, "one"), failed("other", 0.5, 1, "two")]
    table = results_by_task(frame(rows))
    peer = line(table, "peer", 0.5)
    assert peer["status"] == "not installed: a package"
    assert peer["samples"] == 0
    figures = ["kept_ratio", "nll", "match", "retention", "retention_lo", "kv_bytes", "seconds"]
    assert all(math.isnan(peer[name]) for name in figures)
    shaky = line(table, "shaky", 0.5)
    assert shaky["status"] == "ok (3 of 4 failed: out of memory)"
    assert shaky["samples"] == 1
    assert shaky["retention"] == pytest.approx(0.75)
    assert line(table, "other", 0.5)["status"] == "one, and 1 more reason"
    listed = failures(frame(rows)).set_index("reason")
    assert listed.loc["out of memory", "rows"] == 3
    assert listed.loc["not installed: a package", "tasks"] == "needle"


def test_modes_lengths_and_tasks_are_kept_apart_and_families_pool() -> None:
    rows = study() + study(task="multi") + study(query_visible=True)
    rows += [row("none", 0.0, 9.0, 9, family="code", task="code")]
    by_task, by_family = results_by_task(frame(rows)), results_by_family(frame(rows))
    assert len(by_task) == 16
    assert set(by_family["task"]) == {"*"}
    pooled = line(by_family, "quickmerge", 0.5, query_visible=False)
    assert pooled["samples"] == 8
    assert pooled["retention"] == pytest.approx(0.75)
    assert line(by_family, "quickmerge", 0.5, query_visible=True)["samples"] == 4
    assert set(by_family["family"]) == {"retrieval", "code"}


def test_files(tmp_path: Path) -> None:
    by_task, by_family = results_by_task(frame(study())), results_by_family(frame(study()))
    paths = write_results(by_task, by_family, tmp_path / "out")
    assert [path.name for path in paths] == ["results.csv", "families.csv"]
    header = paths[0].read_text().splitlines()[0]
    assert header == (
        "task,family,query_visible,method,ratio,kept_ratio,samples,nll,match,retention,"
        "retention_lo,retention_hi,kv_bytes,seconds,length,exact,status,evidence_kept"
    )
    assert pd.read_csv(paths[1])["task"].unique().tolist() == ["*"]
