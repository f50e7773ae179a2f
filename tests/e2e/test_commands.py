"""The commands that a person types, on the embedded model."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.e2e
FIELDS = {
    "source_tokens", "kept_tokens", "kv_blocks", "kv_bytes", "ttft_s", "total_s", "answer",
    "correct",
}


def qm_vllm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qm_vllm.cli.main", *arguments], capture_output=True, text=True,
        check=False, env={**os.environ, "COLUMNS": "120"},
    )


def test_demo_answers_from_a_third_of_the_blocks(smollm2, tmp_path):
    file = tmp_path / "demo.json"
    done = qm_vllm("demo", "--ratio", "0.33", "--eager", "--json", str(file))
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(file.read_text())
    assert set(figures) == {"plain", "quickmerge"}
    plain, ours = figures["plain"], figures["quickmerge"]
    assert set(plain) == set(ours) == FIELDS
    assert plain["source_tokens"] == ours["source_tokens"] == plain["kept_tokens"] >= 2000
    assert plain["correct"], plain["answer"]
    assert ours["correct"], ours["answer"]
    assert ours["kept_tokens"] <= 0.33 * ours["source_tokens"]
    assert ours["kv_blocks"] <= 0.36 * plain["kv_blocks"]
    assert "KV blocks" in done.stdout


def test_generate_resumes_and_reports_bad_lines(tiny_chat, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    words = "The river ran past the old mill and the miller counted his sacks. " * 40
    source.write_text("\n".join([
        json.dumps({"id": "long", "prompt": words}),
        "{not json",
        json.dumps({"id": "chat", "messages": [{"role": "user", "content": "Say hello."}]}),
        json.dumps({"id": "long", "prompt": "again"}),
        json.dumps({"prompt": "no id"}),
    ]) + "\n")
    arguments = (
        "generate", "--model", str(tiny_chat), "--input", str(source), "--output", str(target),
        "--ratio", "0.4", "--max-tokens", "8", "--eager",
    )
    done = qm_vllm(*arguments)
    assert done.returncode == 1, done.stderr[-2000:]
    for line in ("2", "4", "5"):
        assert f"line {line}" in done.stderr
    rows = {row["id"]: row for row in map(json.loads, target.read_text().splitlines())}
    assert set(rows) == {"long", "chat"}
    assert rows["long"]["quickmerge"]["status"] == "compressed"
    assert rows["chat"]["quickmerge"]["status"] == "untouched"
    before = target.read_text()
    again = qm_vllm(*arguments)
    assert again.returncode == 1
    assert target.read_text() == before


def test_inspect_writes_a_page(tiny_chat, tmp_path):
    text, page = tmp_path / "text.txt", tmp_path / "page.html"
    text.write_text("A <b>bold</b> claim & a plain one. " * 80)
    done = qm_vllm(
        "inspect", "--model", str(tiny_chat), "--input", str(text), "--out", str(page),
        "--ratio", "0.4",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    html = page.read_text()
    assert "<b>bold" not in html
    assert "&lt;b" in html.replace("&lt;</span>", "&lt;b")


def test_doctor_finds_every_hook():
    done = qm_vllm("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "get_finished" in done.stdout
    assert "steps of Model Runner V1" in done.stdout
