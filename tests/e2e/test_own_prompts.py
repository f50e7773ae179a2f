"""A user's own prompts in vLLM and in the reference: the same answers, the same figures."""

from __future__ import annotations

import csv
import json

import pytest

from tests.e2e.test_commands import qm_vllm

pytestmark = pytest.mark.e2e
TEXT = "The mill stood at the bend of the river, and Anna kept the ledger of its sacks. "


def rows_of(folder):
    with (folder / "results.csv").open() as file:
        return {(row["task"], row["method"], row["ratio"]): row for row in csv.DictReader(file)}


def test_both_engines_answer_and_score_own_prompts_alike(tiny_chat, tmp_path):
    source = tmp_path / "mine.jsonl"
    source.write_text("\n".join(map(json.dumps, [
        {"prompt": TEXT * 12, "question": "Who kept the ledger?", "answer": "Anna"},
        {"messages": [{"role": "system", "content": "Be brief."},
                      {"role": "user", "content": TEXT * 10 + "What stood there?"}]},
    ])))
    both = {}
    for engine in ("vllm", "reference"):
        folder = tmp_path / engine
        done = qm_vllm(
            "compare", "--data", str(source), "--model", str(tiny_chat), "--engine", engine,
            "--methods", "quickmerge", "--ratios", "0.5", "--dtype", "float32",
            "--block-size", "32", "--answer-tokens", "12", "--out", str(folder),
        )
        assert done.returncode == 0, done.stderr[-2000:]
        both[engine] = rows_of(folder)
    assert both["vllm"].keys() == both["reference"].keys()
    assert len(both["vllm"]) == 6
    for key, ours in both["vllm"].items():
        theirs = both["reference"][key]
        assert ours["status"] == theirs["status"] == "ok", key
        assert ours["kept_ratio"] == theirs["kept_ratio"], key
        assert ours["match"] == theirs["match"], key
        assert float(ours["nll"]) == pytest.approx(float(theirs["nll"]), abs=2e-3), key
    assert float(both["vllm"]["own_answers", "plain", "1"]["exact"]) == 1
