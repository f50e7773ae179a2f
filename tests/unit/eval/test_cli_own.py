"""``qm-vllm tune`` and ``qm-vllm compare --data`` as a person runs them, on a tiny random model."""

from __future__ import annotations

import csv
import json
import shlex

import pytest
import typer
from typer.testing import CliRunner

from qm_vllm.assets.embedded import ensure_model
from qm_vllm.cli.main import app as product
from qm_vllm_eval.cli.compare import compare
from qm_vllm_eval.cli.tune import tune
from qm_vllm_eval.serving.tiny_model import make_tiny_chat_model
from tests.unit.eval.own_fakes import write

TEXT = "The mill stood at the bend of the river, and Anna kept the ledger of its sacks. "
LINES = [
    {"prompt": TEXT * 3, "question": "Who kept the ledger?", "answer": ["Anna", "Anna did"]},
    {"messages": [{"role": "system", "content": "Be brief."},
                  {"role": "user", "content": TEXT * 2 + "What stood at the river?"}]},
    "{cut",
    {"prompt": TEXT * 4, "question": "What was at the bend?"},
    {"prompt": TEXT * 5, "answer": ""},
    {"prompt": "Towns: Oslo, Bergen, Hamar, Molde, Bodo. " * 5},
]
RUN = ("--answer-tokens", "12", "--dtype", "float32", "--threads", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny_chat_model(ensure_model(), tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def mine(tmp_path):
    return write(tmp_path / "mine.jsonl", LINES)


def call(command, *arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner(env={"COLUMNS": "140"}).invoke(app, [str(part) for part in arguments])


def table(folder):
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_tune_prints_the_curve_the_choice_its_check_and_the_flags(model, mine):
    done = call(tune, "--data", mine, "--model", model, "--max-loss", "1", "--min-tokens", "16",
                "--ratios", "0.5,0.25,0.75", *RUN)
    assert done.exit_code == 0, done.output
    said = done.stdout
    for ratio in ("0.25 *", "0.5 ", "0.75 ", "full prompt", "no context"):
        assert f"│ {ratio}" in said
    assert "Ratio 0.25 is the smallest" in said
    assert "No smaller ratio was tried" in said
    assert "Held out, 2 prompts that nothing was chosen on: quality " in said
    assert "Only 2 prompts were tuned on" in said
    assert "line 3: not valid JSON" in done.stderr
    assert 'line 5: "answer" must be a text' in done.stderr
    command = said.strip().splitlines()[-1]
    assert command == (
        f"qm-vllm serve {model} --ratio 0.25 --delivery native --keep-roles none --min-tokens 16 "
        "--block-size 16"
    )
    served = CliRunner().invoke(product, [*shlex.split(command)[1:], "--show-arguments"])
    assert served.exit_code == 0, served.output
    assert '"ratio": 0.25' in served.stdout
    assert '"min_tokens": 16' in served.stdout


def test_tune_says_that_no_ratio_keeps_the_bound(model, tmp_path):
    lines = [{"prompt": TEXT * (3 + i), "question": f"Why {i}?"} for i in range(6)]
    done = call(tune, "--data", write(tmp_path / "m.jsonl", lines), "--model", model, "--max-loss",
                "0", "--min-tokens", "16", "--ratios", "0.1", "--method", "quickmerge-entropy",
                *RUN)
    assert done.exit_code == 1
    assert "│ 0.1 " in done.stdout
    assert "No ratio that was tried keeps the loss within 0: even at 0.1 it may reach " in (
        done.stdout
    )
    assert "qm-vllm serve" not in done.stdout
    assert "Held out" not in done.stdout


def test_tune_without_held_out_prompts_says_so(model, mine):
    done = call(tune, "--data", mine, "--model", model, "--max-loss", "1", "--min-tokens", "16",
                "--ratios", "0.5", "--holdout", "0", "--method", "native", *RUN)
    assert done.exit_code == 0, done.output
    assert "Nothing was held out, so the promise was not checked." in done.stdout
    assert "--delivery native --keep-roles none" in done.stdout


@pytest.mark.parametrize(("arguments", "message"), [
    (("--method", "random"), "--method 'random' cannot be tuned; known: quickmerge,"),
    (("--method", "native", "--engine", "vllm"), "--method 'native' cannot be tuned"),
    (("--engine", "onnx"), "--engine 'onnx' is unknown; known: reference, vllm"),
    (("--ratios", "2"), "--ratios has 2; allowed: greater than 0, at most 1"),
    (("--min-tokens", "100000"), "no prompt that can be used (line 1: has "),
    (("--data", "nowhere.jsonl"), "cannot read nowhere.jsonl: No such file"),
    (("--model", "no/such-model"), "the model cannot be read"),
])
def test_tune_refuses_with_one_sentence(model, mine, arguments, message):
    done = call(tune, "--data", mine, "--model", model, "--min-tokens", "16", *arguments)
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())


def test_one_prompt_is_not_enough_to_tune_on(model, tmp_path):
    done = call(tune, "--data", write(tmp_path / "m.jsonl", LINES[:1]), "--model", model,
                "--min-tokens", "16")
    assert done.exit_code == 1
    assert "one prompt alone has no interval" in done.stderr


def test_compare_runs_the_study_on_own_prompts(model, mine, tmp_path):
    out = tmp_path / "study"
    arguments = ("--data", mine, "--model", model, "--out", out, "--methods", "quickmerge,random",
                 "--query", "both", "--ratios", "0.5", *RUN)
    done = call(compare, *arguments)
    assert done.exit_code == 0, done.output
    assert "line 3: not valid JSON" in done.stderr
    rows = {(row["task"], row["query_visible"], row["method"]): row for row in table(out)}
    assert len(rows) == 2 * 2 * 4
    for task, seen in (("given_answers", "1"), ("own_answers", "3")):
        for method in ("none", "plain", "quickmerge", "random"):
            row = rows[task, "True", method]
            assert row["status"] == "ok"
            assert row["samples"] == seen
            assert float(row["retention"]) == {"none": 0, "plain": 1}.get(
                method, float(row["retention"])
            )
    # The model's own answer is what it says to the full prompt.
    assert float(rows["own_answers", "True", "plain"]["match"]) == 1
    assert float(rows["own_answers", "True", "plain"]["exact"]) == 1
    blind = rows["own_answers", "False", "quickmerge"]
    assert blind["samples"] == "1"
    assert "2 of 3 failed: not applicable: it has no question" in blind["status"]
    meta = json.loads((out / "run_meta.json").read_text())
    assert set(meta["runs"][0]["skipped"]) == {"3", "5"}
    assert meta["runs"][0]["arguments"]["data"] == "mine.jsonl"
    page = (out / "report.html").read_text()
    assert "Your own prompts, question visible" in page
    assert "0 tokens, question" not in page

    before = (out / "predictions.parquet").read_bytes()
    assert call(compare, *arguments).exit_code == 0
    assert (out / "predictions.parquet").read_bytes() == before
    mine.write_text(mine.read_text() + '{"prompt": "another prompt of some words"}\n')
    other = call(compare, *arguments)
    assert other.exit_code == 1
    assert "rows are never mixed" in " ".join(other.stderr.split())


@pytest.mark.parametrize(("arguments", "message"), [
    (("--tasks", "recall"), "--data takes the place of --tasks, --length, --haystacks"),
    (("--first-sample", "9"), "has 4 prompts that can be used; --first-sample 9 leaves none"),
    (("--data", "nowhere.jsonl"), "cannot read nowhere.jsonl"),
])
def test_compare_refuses_what_does_not_go_with_own_prompts(
    model, mine, tmp_path, arguments, message
):
    out = tmp_path / "study"
    done = call(compare, "--data", mine, "--model", model, "--out", out, *arguments)
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())
    assert not out.exists()
