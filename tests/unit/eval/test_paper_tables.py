"""From cells to tables, pictures and the page; a run that goes on where it was."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from qm_vllm_eval.baselines import ABLATIONS, CONTROLS, METHODS, TABLE_1
from qm_vllm_eval.paper import cells, report, run, tables
from qm_vllm_eval.paper.scale import SMOKE
from qm_vllm_eval.ray.journal import JournalError


def cell(task, method, seed, value, rate=2.0):
    return {"task": task, "method": method, "seed": seed, "rate": rate,
            tables.METRICS[task]: value}


def all_cells():
    return [
        cell(task, method, seed, 10.0 + place + seed, 1 + place / 10)
        for task in tables.METRICS for place, method in enumerate(METHODS) for seed in (0, 1)
    ]


def test_table_1_has_means_deviations_and_the_paper_s_figures():
    rows = {row["method"]: row for row in tables.table_1(all_cells())}
    assert list(rows) == [*TABLE_1, *CONTROLS]
    vae = rows["VQ-VAE"]
    assert vae["ppl"] == pytest.approx(11.5)
    assert vae["ppl_std"] == pytest.approx(0.5**0.5)
    assert (vae["paper_ppl"], vae["paper_rate"]) == (19.8, 1.31)
    assert rows["no context"]["paper_ppl"] is None
    assert rows["QuickMerge++"]["seeds"] == 2


def test_table_2_pairs_by_seed_and_says_where_seeds_disagree():
    held = [cell("text", "QuickMerge++", seed, value) for seed, value in ((0, 10.0), (1, 30.0))]
    held += [cell("text", "- AR prior", seed, value) for seed, value in ((0, 12.0), (1, 31.0))]
    held += [cell("text", "- norm masking", seed, value) for seed, value in ((0, 9.0), (1, 33.0))]
    rows = {row["method"]: row for row in tables.table_2(held)}
    assert list(rows) == ["QuickMerge++", *ABLATIONS]
    assert rows["- AR prior"]["ppl_change"] == pytest.approx(1.5)
    assert rows["- AR prior"]["ppl_same"] is True
    assert rows["- norm masking"]["ppl_same"] is False
    assert rows["- entropy budget"]["ppl_change"] is None
    assert rows["QuickMerge++"]["accuracy"] is None


def test_files_say_what_the_rows_say(tmp_path):
    third = [{"shape": "paper", "method": method, "latency_ms": 5.0, "latency_ms_low": 4.0,
              "latency_ms_high": 6.5, "ttft_ms": 10.0, "kv_mb": 3.0}
             for method in ("baseline", "quickmerge")]
    paths = report.write(tmp_path, SMOKE, all_cells(), {"text": {"data": "a < b", "train": 5}},
                         {3: third, 4: []})
    assert {path.name for path in paths} >= {
        "report.html", "tables.md", "table1.csv", "table2.csv", "table3.csv", "table3.png"
    }
    assert not (tmp_path / "table4.csv").exists()
    with (tmp_path / "table1.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["ppl"]) == pytest.approx(11.5)
    page = (tmp_path / "report.html").read_text()
    assert "a &lt; b" in page
    assert page.count("<table>") == 3
    assert "5.00 (4.00 to 6.50)" in (tmp_path / "tables.md").read_text()
    for path in paths:
        assert path.stat().st_size > 0


@pytest.fixture
def fake(monkeypatch):
    """Cells that cost nothing; counts them."""
    measured = []

    def one(job):
        task, name, _, _, seed, _ = job
        measured.append((task, name, seed))
        return {"row_id": cells.row_id(task, name, seed), "ratio": 0.0, "status": "ok",
                "task": task, "method": name, "seed": seed, "rate": 2.0, "seconds": 0.0,
                tables.METRICS[task]: float(seed)}

    monkeypatch.setattr(cells, "measured", one)
    monkeypatch.setattr(run, "prepare", lambda *_: None)
    monkeypatch.setattr(run.measure, "facts", lambda _: {"data": "none"})
    third = [{"shape": "paper", "method": "baseline", "latency_ms": 1.0}]
    monkeypatch.setattr(run.table3, "measure", lambda settings, say: third)
    return measured


def options(out, **changes):
    return run.Options(**{"scale": SMOKE, "out": out, "tables": (1, 2, 3), **changes})


def test_a_run_measures_each_cell_once_and_goes_on(fake, tmp_path):
    run.run(options(tmp_path, tasks=("text",)))
    first = len(fake)
    assert first == len(METHODS) * len(SMOKE.seeds)
    run.run(options(tmp_path))
    assert len(fake) == 3 * first
    assert len(set(fake)) == len(fake)
    run.run(options(tmp_path))
    assert len(fake) == 3 * first
    held = json.loads((tmp_path / "run_meta.json").read_text())
    assert len(held["runs"]) == 3
    assert all(one["ended"] for one in held["runs"])


def test_a_cut_run_keeps_what_it_had(fake, tmp_path, monkeypatch):
    work = cells.measured

    def dies(job):
        if len(fake) == 5:
            raise KeyboardInterrupt
        return work(job)

    monkeypatch.setattr(cells, "measured", dies)
    with pytest.raises(KeyboardInterrupt):
        run.run(options(tmp_path, tasks=("image",)))
    monkeypatch.setattr(cells, "measured", work)
    run.run(options(tmp_path, tasks=("image",)))
    assert len(fake) == len(set(fake)) == len(METHODS) * len(SMOKE.seeds)


def test_another_scale_does_not_mix(fake, tmp_path):
    run.run(options(tmp_path, tasks=("text",)))
    with pytest.raises(JournalError, match="scale"):
        run.run(options(tmp_path, scale=replace(SMOKE, steps=9)))


def test_cells_of_several_processes_are_those_of_one(monkeypatch):
    """The pool's rows reach the caller; the work itself is done elsewhere, so it is made simple."""
    class Pool:
        def __init__(self, workers, *_):
            assert workers == 2

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def submit(self, work, job):
            return SimpleNamespace(result=lambda: work(job), cancel=lambda: None)

    monkeypatch.setattr(cells, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(cells, "as_completed", lambda waiting: reversed(waiting))
    monkeypatch.setattr(cells, "measured", lambda job: {"row_id": job, "rate": 1.0, "seconds": 0.0})
    told = []
    rows = list(cells.side_by_side(["a", "b", "c"], 2, told.append))
    assert [row["row_id"] for row in rows] == ["c", "b", "a"]
    assert len(told) == 3
