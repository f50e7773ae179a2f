"""BookSum as a task, and ``qm-vllm eval booksum`` with a replica that needs no engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from qm_vllm.assets.embedded import ensure_model
from qm_vllm.cli.main import app
from qm_vllm_eval.datasets.booksum import open_booksum
from qm_vllm_eval.ray import work
from qm_vllm_eval.ray.booksum import BookSumTask
from qm_vllm_eval.ray.work import TOO_LONG, UNUSABLE, Answer

DATA = Path(__file__).parent / "data" / "booksum_columns.csv"
FAKE = "tests.unit.eval.ray_fakes:FakeReplica"


def make_task(**given):
    held = {"data": str(DATA), "split": None, "ratios": (1.0, 0.4)}
    return BookSumTask(**held | {"tokenizer": str(ensure_model())} | given)


def test_each_chapter_at_each_ratio():
    rows = list(open_booksum(DATA))
    units = list(make_task().units())
    assert [unit.key for unit in units] == [(r.row_id, q) for r in rows for q in (1.0, 0.4)]
    plain, kept = next(pair for pair in zip(units[::2], units[1::2], strict=True)
                       if not pair[0].failure)
    assert plain.prompt == kept.prompt
    assert len(plain.prompt["prompt_token_ids"]) > 10
    assert (plain.options, kept.options) == ({"enabled": False},
                                             {"ratio": 0.4, "min_tokens": 256})
    assert plain.sampling == {"max_tokens": 220, "temperature": 0.0}


def test_unusable_and_long_chapters_have_a_kind_and_a_reason():
    by_failure = {}
    for unit in make_task(most_tokens=20).units():
        by_failure.setdefault(unit.failure, []).append(unit)
    assert set(by_failure) == {UNUSABLE, TOO_LONG}
    assert "at most 20 are allowed" in by_failure[TOO_LONG][0].reason
    assert all(not unit.prompt for units in by_failure.values() for unit in units)


def test_limit_counts_chapters():
    assert len({unit.row_id for unit in make_task(limit=2).units()}) == 2


def test_score_takes_the_best_reference():
    answer = Answer([], "The cat sat on the mat.", None, {}, 0.0, 1.0)
    facts = {"references": ["A dog ran.", "The cat sat on the mat."], "title": "1"}
    assert make_task().score(facts, answer)["rougeL"] == pytest.approx(1.0)


def test_limit_and_ratios_do_not_start_a_new_journal():
    assert make_task(limit=3, ratios=(0.5,)).settings() == make_task().settings()
    assert make_task(words=99).settings() != make_task().settings()


def run(*arguments):
    return CliRunner().invoke(app, ["eval", "booksum", *map(str, arguments)])


@pytest.fixture
def _fake_engine(monkeypatch):
    settings = work.EngineSettings
    monkeypatch.setattr(work, "EngineSettings", lambda **given: settings(**given, replica=FAKE))


@pytest.mark.usefixtures("_fake_engine")
def test_command_writes_all_files_then_fails_for_the_bad_rows(tmp_path):
    done = run("--data", DATA, "--replicas", 0, "--out", tmp_path)
    assert done.exit_code == 1, done.output
    assert "failed" in done.output
    rows = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert {row["status"] for row in rows} == {"ok", "failed"}
    assert all(row["reason"] for row in rows if row["status"] == "failed")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["task"]["rouge"]["package"] == "rouge-score"
    assert summary["run"]["command"]
    assert {"cpu", "cores"} <= summary["run"]["hardware"].keys()


@pytest.mark.usefixtures("_fake_engine")
def test_command_with_good_rows_ends_with_zero(tmp_path):
    done = run("--data", DATA, "--replicas", 0, "--limit", 1, "--out", tmp_path)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(("arguments", "said"), [
    (("--data", "nowhere.csv", "--replicas", 0), "no file or folder"),
    (("--ratios", "1.0,2"), "at most 1"),
    (("--scaling", "1,x"), "whole numbers of replicas"),
    (("--engine", "magic"), "no --engine 'magic'"),
])
def test_refusals(tmp_path, arguments, said):
    done = run(*arguments, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert said in " ".join(done.output.split())
