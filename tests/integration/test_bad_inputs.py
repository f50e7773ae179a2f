"""Bad lines and rows through real engines: each is one error, the others are answered."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from pyarrow import parquet

from qm_vllm.assets.embedded import ensure_model
from qm_vllm_eval.serving.tiny_model import make_tiny_chat_model

WORDS = "The river ran past the old mill and the miller counted his sacks. "
MESSAGES = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random decoder with a real tokenizer and chat template."""
    return make_tiny_chat_model(ensure_model(), tmp_path_factory.mktemp("chat") / "tiny")


def qm_vllm(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "qm_vllm.cli.main", *map(str, arguments)], capture_output=True,
        text=True, check=False, env={**os.environ, "COLUMNS": "200"},
    )
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done


def test_a_batch_of_bad_lines_in_small_blocks(model, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [
        b"\xef\xbb\xbf" + json.dumps({"id": "1", "prompt": WORDS * 40}).encode() + b"\r",
        json.dumps({"id": 1, "prompt": WORDS * 40}).encode(),
        rb'{"id": "half", "prompt": "\ud83d lone"}',
        rb'{"id": "half a chat", "messages": [{"role": "user", "content": "\ud83d"}]}',
        rb'{"id": "\ud83d", "messages": [{"role": "user", "content": "\ud83d\ude00 whole"}]}',
        json.dumps({"id": "long", "prompt": "word " * 5_000_000}).encode(),
        b'{"id": "twice", "prompt": "x", "prompt": "y"}',
        b'{"id": NaN, "prompt": "x"}',
        json.dumps({"id": "nothing", "prompt": "\0 \u2028 \ufeff"}).encode(),
        json.dumps({"id": "chat", "messages": MESSAGES}).encode(),
        b'{"id": "cut", "prompt": "x',
    ]
    source.write_bytes(b"\n".join(lines))
    done = qm_vllm(
        "generate", "--model", model, "--input", source, "--output", target, "--ratio", "0.4",
        "--max-tokens", "8", "--eager", "--max-model-len", "2048", "--block-size", "64",
        "--kv-cache-memory-bytes", "64M", "--no-enable-prefix-caching",
    )
    assert done.returncode == 1, done.stderr[-3000:]
    for number in (3, 4, 6, 7, 8, 11):
        assert f"line {number}: " in done.stderr
    assert "5 written, 6 failed" in done.stderr
    rows = [json.loads(line) for line in target.read_bytes().splitlines()]
    assert [row["id"] for row in rows] == ["1", 1, "\ud83d", "nothing", "chat"]
    report = rows[0]["quickmerge"]
    assert report["status"] == "compressed"
    assert report["kept_tokens"] % 64 == 1  # whole blocks of the size that was asked for, and one
    assert rows[0]["text"] == rows[1]["text"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "stock", "actors"])
def test_chapters_of_every_bad_kind(model, tmp_path, engine):
    if engine != "local":
        pytest.importorskip("ray")
    base = {"bid": 1, "is_aggregate": False, "summary_text": "他去了北京。"}
    bad = ["", None, WORDS * 2000, "cut \ud83d", ["a", "list"]]
    records = [{**base, "chapter": chapter} for chapter in [WORDS * 30, *bad, "Short. \U0001f600"]]
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"bid": 1, "cha')
    done = qm_vllm(
        "eval", "booksum", "--data", file, "--model", model, "--out", tmp_path / "out",
        "--ratios", "0.5", "--max-source-tokens", "1500", "--max-tokens", "8",
        "--replicas", 0 if engine == "local" else 1,
        "--engine", "stock" if engine == "local" else engine,
        "--block-size", "64", "--kv-cache-memory-bytes", "64M",
    )
    assert done.returncode == 1, done.stderr[-3000:]
    rows = parquet.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    assert len(rows) == 8, done.stderr
    assert sum(row["status"] == "ok" for row in rows) == 2
    reasons = " ".join(row["reason"] for row in rows)
    for part in ("is empty", "at most 1500", "half of a surrogate pair", "a list", "is no JSON"):
        assert part in reasons
    compressed = [row for row in rows if row.get("plugin") == "compressed"]
    assert [row["kept_tokens"] % 64 for row in compressed] == [1]
