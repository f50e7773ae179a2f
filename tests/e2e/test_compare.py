"""``qm-vllm compare`` as a person runs it, small; and our method in vLLM against the reference."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from qm_vllm.cli.main import app
from tests.e2e.test_commands import qm_vllm

pytestmark = pytest.mark.e2e
SMALL = (
    "--tasks", "needle_digits,recall", "--methods", "quickmerge,truncation,random",
    "--samples", "2", "--length", "512", "--haystacks", "essays",
)
COLUMNS = (
    "task,family,query_visible,method,ratio,kept_ratio,samples,nll,match,retention,"
    "retention_lo,retention_hi,kv_bytes,seconds"
)


def table(folder):
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def study(smollm2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    done = qm_vllm("compare", *SMALL, "--ratios", "0.5,0.25", "--out", str(folder))
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_a_small_grid_gives_table_plots_page_and_predictions(study):
    import pandas as pd

    assert (study / "results.csv").read_text().startswith(COLUMNS)
    rows = table(study)
    assert {(row["task"], row["method"], row["ratio"]) for row in rows} == {
        (task, method, ratio)
        for task in ("needle_digits", "recall")
        for method, ratio in [
            ("none", "0"), ("plain", "1"),
            *((m, r) for m in ("quickmerge", "truncation", "random") for r in ("0.5", "0.25")),
        ]
    }
    for row in rows:
        assert row["status"] == "ok"
        assert row["samples"] == "2"
        if row["method"] in ("none", "plain"):
            assert float(row["retention"]) == float(row["method"] == "plain")
        elif row["method"] == "quickmerge" and row["ratio"] == "0.5":
            assert float(row["retention"]) > 0.5
    half = next(r for r in rows if (r["method"], r["ratio"]) == ("quickmerge", "0.5"))
    whole = next(r for r in rows if r["method"] == "plain" and r["task"] == half["task"])
    assert 0.45 < float(half["kv_bytes"]) / float(whole["kv_bytes"]) <= 0.51
    predictions = pd.concat(map(pd.read_parquet, study.rglob("*.parquet")))
    assert len(predictions) == 32
    assert not predictions["prediction"].isna().any()
    meta = json.loads((study / "run_meta.json").read_text())
    assert meta["configuration"]["split"] == "report"
    assert "<svg" in (study / "report.html").read_text()
    assert list(study.glob("plots/*.png"))


def test_keeping_all_costs_nothing_whether_or_not_the_question_is_seen(smollm2, tmp_path):
    done = qm_vllm(
        "compare", "--tasks", "needle_words,recall", "--ratios", "1", "--samples", "1",
        "--methods", "quickmerge,random,even,mean-pool,truncation,gemfilter-like,specprefill-like",
        "--query", "both", "--length", "400", "--haystacks", "essays", "--dtype", "float32",
        "--out", str(tmp_path),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = table(tmp_path)
    assert len(rows) == 2 * 2 * 9
    for row in rows:
        kept = float(row["method"] != "none")
        assert float(row["retention"]) == pytest.approx(kept, abs=1e-3), row
        assert kept == 0 or float(row["kept_ratio"]) == 1


def test_a_second_run_adds_what_is_missing_and_repeats_nothing(study):
    before = {(r["task"], r["method"], r["ratio"]): r["nll"] for r in table(study)}
    done = qm_vllm("compare", *SMALL, "--ratios", "0.5,0.25,0.125", "--out", str(study))
    assert done.returncode == 0, done.stderr[-2000:]
    after = {(r["task"], r["method"], r["ratio"]): r["nll"] for r in table(study)}
    assert len(after) == len(before) + 6
    assert {key: after[key] for key in before} == before


def test_a_folder_of_another_configuration_is_refused(study):
    done = qm_vllm(
        "compare", *SMALL, "--ratios", "0.5", "--out", str(study), "--split", "tune"
    )
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "rows are never mixed" in said
    assert "split: 'report' there, 'tune' now" in said


@pytest.mark.parametrize(("option", "value", "message"), [
    ("--tasks", "needles", "task 'needles' is unknown; known: all, data, needle_digits"),
    ("--methods", "snapkv", "method 'snapkv' is unknown; known: none, plain, quickmerge"),
    ("--ratios", "0.5,2", "--ratios has 2; allowed: greater than 0, at most 1"),
    ("--ratios", "half", "--ratios has 'half', which is not a number"),
    ("--haystacks", "hay", "haystack 'hay' is unknown; known: essays"),
    ("--query", "seen", "--query 'seen' is unknown; known: visible, blind, both"),
])
def test_what_does_not_exist_is_answered_with_what_does(smollm2, tmp_path, option, value, message):
    arguments = ["compare", "--out", str(tmp_path / "x"), option, value]
    done = CliRunner(env={"COLUMNS": "120"}).invoke(app, arguments)
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "x").exists()


def test_a_peer_that_is_not_installed_says_so_in_its_row(smollm2, tmp_path, monkeypatch):
    monkeypatch.setenv("QM_VLLM_PEERS", str(tmp_path / "nowhere"))
    done = qm_vllm(
        "compare", "--tasks", "needle_digits", "--methods", "kvpress-snapkv,llmlingua,random",
        "--ratios", "0.5", "--samples", "1", "--length", "512", "--haystacks", "essays",
        "--out", str(tmp_path / "s"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    status = {row["method"]: row["status"] for row in table(tmp_path / "s")}
    assert status["random"] == "ok"
    for peer in ("kvpress-snapkv", "llmlingua"):
        assert "scripts/setup_peers.sh" in status[peer]


def test_vllm_and_the_reference_agree_on_the_same_samples(smollm2, tmp_path):
    """float32, K in whole blocks: the same tokens are kept, so the figures are the same."""
    both = {}
    for engine in ("vllm", "reference"):
        folder = tmp_path / engine
        done = qm_vllm(
            "compare", "--engine", engine, "--tasks", "needle_words,recall",
            "--methods", "quickmerge,quickmerge-entropy", "--ratios", "0.25",
            "--samples", "1", "--length", "512", "--haystacks", "essays", "--dtype", "float32",
            "--block-size", "32", "--out", str(folder),
        )
        assert done.returncode == 0, done.stderr[-2000:]
        both[engine] = {
            (row["task"], row["method"], row["ratio"]): row for row in table(folder)
        }
    assert both["vllm"].keys() == both["reference"].keys()
    for key, ours in both["vllm"].items():
        theirs = both["reference"][key]
        assert ours["status"] == theirs["status"] == "ok", key
        assert ours["kept_ratio"] == theirs["kept_ratio"], key
        assert ours["kv_bytes"] == theirs["kv_bytes"], key
        assert float(ours["nll"]) == pytest.approx(float(theirs["nll"]), abs=2e-3), key
        assert ours["match"] == theirs["match"], key


def test_ctrl_c_keeps_and_reports_what_is_there(smollm2, tmp_path):
    command = [
        sys.executable, "-m", "qm_vllm.cli.main", "compare", "--tasks", "needle_digits",
        "--methods", "random", "--ratios", "0.5", "--samples", "200", "--length", "400",
        "--haystacks", "essays", "--out", str(tmp_path),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A job in the background is born with SIGINT ignored, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(1800):
        if len(list(tmp_path.glob("predictions/part-*.parquet"))) >= 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said[-2000:]
    assert "the same command goes on" in " ".join(said.split())
    rows = table(tmp_path)
    assert {row["method"] for row in rows} == {"none", "plain", "random"}
    assert 2 <= int(rows[0]["samples"]) < 200
