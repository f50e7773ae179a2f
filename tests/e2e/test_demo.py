"""The demo as a user runs it: the embedded model, real text, both engines' ways."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from qm_vllm.cli import embedded
from qm_vllm.cli.common import CliError
from qm_vllm.cli.document import demo_document

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

FIELDS = {
    "source_tokens", "kept_tokens", "kv_blocks", "kv_bytes", "ttft_s", "total_s", "answer",
    "correct",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _installed():
    try:
        demo_document()
        embedded.ensure_model()
    except CliError as error:
        pytest.skip(str(error))


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "qm_vllm.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=500,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"COLUMNS": "120", "HF_HUB_OFFLINE": "1"} | environment,
    )


def test_demo_compares_both_ways_and_answers_right(tmp_path):
    figures = tmp_path / "demo.json"
    done = run("demo", "--eager", "--json", figures)
    assert done.returncode == 0, done.stderr
    assert "KV blocks" in done.stdout
    result = json.loads(figures.read_text())
    plain, merged = result["plain"], result["quickmerge"]
    assert set(plain) == set(merged) == FIELDS
    assert plain["source_tokens"] == merged["source_tokens"] == plain["kept_tokens"] > 2000
    assert merged["kept_tokens"] <= 0.36 * plain["kept_tokens"]
    assert merged["kv_blocks"] <= 0.4 * plain["kv_blocks"]
    assert merged["kv_bytes"] / merged["kv_blocks"] == plain["kv_bytes"] / plain["kv_blocks"]
    assert 0 < plain["ttft_s"] <= plain["total_s"]
    assert 0 < merged["ttft_s"] <= merged["total_s"]
    assert plain["correct"] is True
    assert merged["correct"] is True


def test_a_prompt_that_is_left_untouched_is_an_error(tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("Water boils at 100 degrees.")
    done = run("demo", "--eager", "--text", text, "--question", "When does water boil?")
    assert done.returncode == 1
    assert "was not compressed" in " ".join(done.stderr.split())


def test_inspect_and_generate(tmp_path):
    text = tmp_path / "prompt.txt"
    text.write_text(demo_document().prompt())
    page = tmp_path / "page.html"
    done = run("inspect", "--input", text, "--out", page, "--ratio", "0.3")
    assert done.returncode == 0, done.stderr
    html = page.read_text()
    assert html.count('<span class="k ') > 500
    assert html.count('<span class="m ') > 1000

    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    message = {"role": "user", "content": demo_document().prompt()}
    lines = [
        {"id": "short", "prompt": "Paris is the capital of"},
        {"id": "bad"},
        {"id": "long", "messages": [message], "quickmerge": {"ratio": 0.5}},
        {"id": "too long", "prompt": "word " * 9000},
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = (
        "generate", "--model", embedded.model_folder(), "--input", source, "--output", target,
        "--max-tokens", "8", "--eager",
    )  # fmt: skip
    done = run(*arguments)
    assert done.returncode == 1
    assert "line 2:" in done.stderr
    assert "line 4: the prompt has" in done.stderr
    results = {r["id"]: r for r in map(json.loads, target.read_text().splitlines())}
    assert set(results) == {"short", "long"}
    assert results["short"]["quickmerge"]["status"] == "untouched"
    assert results["long"]["quickmerge"]["status"] == "compressed"
    assert 0.45 < results["long"]["quickmerge"]["ratio"] < 0.55
