"""What the commands refuse or survive, on the embedded model."""

from __future__ import annotations

import json

import pytest

from qm_vllm.assets.essay import demo_document
from tests.e2e.test_commands import qm_vllm

pytestmark = pytest.mark.e2e


def test_a_demo_that_was_not_compressed_is_an_error(tiny_chat, tmp_path):
    text, figures = tmp_path / "short.txt", tmp_path / "demo.json"
    text.write_text("Water boils at 100 degrees.")
    done = qm_vllm(
        "demo", "--eager", "--model", str(tiny_chat), "--text", str(text),
        "--question", "When does water boil?", "--json", str(figures),
    )
    assert done.returncode == 1
    assert "was not compressed" in " ".join(done.stderr.split())
    assert not figures.exists()


def test_generate_takes_options_per_line_and_names_a_prompt_that_is_too_long(
    tiny_chat, tmp_path
):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    message = {"role": "user", "content": demo_document().prompt()}
    lines = [
        {"id": "too long", "prompt": "word " * 9000},
        {"id": "half", "messages": [message], "quickmerge": {"ratio": 0.5}},
        {"id": "off", "messages": [message], "quickmerge": {"enabled": False}},
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = qm_vllm(
        "generate", "--model", str(tiny_chat), "--input", str(source), "--output", str(target),
        "--ratio", "0.3", "--max-tokens", "8", "--eager",
    )
    assert done.returncode == 1
    assert "line 1: the prompt has" in done.stderr
    rows = {row["id"]: row["quickmerge"] for row in map(json.loads, target.open())}
    assert set(rows) == {"half", "off"}
    assert 0.45 < rows["half"]["ratio"] <= 0.5
    assert rows["off"]["status"] == "untouched"
