"""A run without an engine: its files, resuming, bad rows; and the sums of the scaling table."""

from __future__ import annotations

import dataclasses
import json

import pytest
from pyarrow import parquet

from qm_vllm_eval.ray import scaling
from qm_vllm_eval.ray.journal import JournalError
from qm_vllm_eval.ray.runner import LOCAL, RunOptions, run
from qm_vllm_eval.ray.work import TOO_LONG, EngineSettings, Outcome, Unit
from tests.unit.eval.ray_fakes import FakeReplica, FakeTask, answer

FAKE = "tests.unit.eval.ray_fakes:FakeReplica"
SETTINGS = EngineSettings(model="somewhere", replica=FAKE)


@pytest.fixture(autouse=True)
def _no_engine_yet():
    FakeReplica.started = 0


def carry_out(folder, task=None, settings=SETTINGS, tell=lambda row: None, **options):
    given = RunOptions(folder, engine=LOCAL, in_flight=2, command="qm-vllm eval fake", **options)
    return run(task or FakeTask(), settings, "some-model", given, tell)


def rows_of(folder):
    return parquet.read_table(folder / "rows.parquet").to_pylist()


def test_files_of_a_run(tmp_path):
    finished = carry_out(tmp_path)
    rows = rows_of(tmp_path)
    assert [(r["row_id"], r["ratio"]) for r in rows] == sorted(u.key for u in FakeTask().units())
    assert rows[0] | {"started": 0} == {
        "row_id": "row-0", "ratio": 0.5, "status": "ok", "failure": "", "reason": "",
        "replica": "fake", "tries": 1, "source_tokens": 100, "kept_tokens": 50, "kv_blocks": 4,
        "kv_bytes": 4096, "plugin": "compressed", "note": "", "prediction": "row-0 at 0.5",
        "answer_tokens": 2, "started": 0, "seconds": 1.0, "score": 0.0,
    }
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["rows"], summary["failed"], summary["run"]["new_rows"]) == (8, 0, 8)
    assert [part["ratio"] for part in summary["ratios"]] == [1.0, 0.5]
    score = summary["ratios"][1]["metrics"]["score"]
    assert score["mean"] == pytest.approx(0.15)
    assert score["low"] <= score["mean"] <= score["high"]
    assert summary["task"] == {"scorer": "a tenth of the number"}
    report = (tmp_path / "report.md").read_text()
    assert "| 0.5 | 4 | 0.1500 [" in report
    assert "`qm-vllm eval fake`" in report
    assert not finished.failed
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "journal.jsonl", "report.md", "rows.parquet", "summary.json"
    ]


def test_a_run_that_ends_in_the_middle_goes_on_and_gives_the_same_rows(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    carry_out(whole)

    def stop_at_third(row, seen=[]):  # noqa: B006  counts over the calls
        seen.append(row)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(cut, tell=stop_at_third)
    assert not (cut / "rows.parquet").exists()
    told = []
    finished = carry_out(cut, tell=told.append)
    assert len(told) == finished.summary["run"]["new_rows"] == 5
    assert rows_of(cut) == rows_of(whole)


def test_a_finished_run_starts_no_engine(tmp_path):
    carry_out(tmp_path)
    assert FakeReplica.started == 1
    assert carry_out(tmp_path).summary["run"]["new_rows"] == 0
    assert FakeReplica.started == 1


def test_bad_rows_carry_their_reason_and_are_counted(tmp_path):
    finished = carry_out(tmp_path, FakeTask(4, bad=(1, 2)))
    failed = [row for row in rows_of(tmp_path) if row["status"] == "failed"]
    assert len(failed) == len(finished.failed) == 4
    assert finished.summary["failures"] == {TOO_LONG: 4}
    assert {row["reason"] for row in failed} == {"the prompt has 9 tokens; at most 8 are allowed"}
    assert "| row-1 | 0.5 | too long |" in (tmp_path / "report.md").read_text()
    assert finished.summary["ratios"][0]["rows"] == 2


def test_rows_that_cannot_be_scored_fail_alone(tmp_path):
    class Picky(FakeTask):
        def score(self, facts, answer):
            if facts["number"] == 2:
                raise ValueError("a reference holds no word")
            return super().score(facts, answer)

    finished = carry_out(tmp_path, Picky())
    assert {row["row_id"] for row in finished.failed} == {"row-2"}
    assert "cannot be scored" in finished.failed[0]["reason"]


def test_only_bad_rows_still_give_all_files(tmp_path):
    finished = carry_out(tmp_path, FakeTask(1, bad=(0,)))
    assert finished.summary["ratios"][0]["metrics"]["score"]["mean"] is None
    assert "| 1 | 0 | - |" in (tmp_path / "report.md").read_text()


def test_other_engine_settings_do_not_mix(tmp_path):
    carry_out(tmp_path)
    with pytest.raises(JournalError, match="max_model_len"):
        carry_out(tmp_path, settings=dataclasses.replace(SETTINGS, max_model_len=99))


def test_scaling_counts_from_the_first_start_to_the_last_end():
    def outcomes(count):
        for number in range(8):
            unit = Unit(f"row-{number}", 1.0)
            turn = number // count
            yield Outcome(unit, answer(unit, started=100.0 + 2 * turn, seconds=2.0))

    one, two, four = scaling.measure((4, 1, 2, 2), outcomes)
    assert [part["replicas"] for part in (one, two, four)] == [1, 2, 4]
    assert (one["seconds"], one["rows_per_s"], one["efficiency"]) == (16.0, 0.5, 1.0)
    assert (two["seconds"], two["rows_per_s"], two["efficiency"]) == (8.0, 1.0, 1.0)
    assert (four["rows_per_s"], four["efficiency"]) == (2.0, 1.0)


def test_scaling_without_an_answer_says_so():
    with pytest.raises(ValueError, match="no row was answered with 1"):
        scaling.measure((1,), lambda count: [Outcome(Unit("row", 1.0))])
