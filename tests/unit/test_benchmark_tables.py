"""The tables of benchmarks/README.md are those of the files beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qm_vllm_eval.published import speed, stored

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_the_page_shows_the_committed_results():
    text = (FOLDER / "README.md").read_text()
    assert f"<!-- begin generated: benchmarks -->\n{speed.tables()}\n<!-- end" in text


def test_every_result_has_a_table_or_a_place_in_the_text():
    text = (FOLDER / "README.md").read_text()
    files = sorted((FOLDER / "results").glob("*/*.json"))
    assert files
    for file in files:
        name = file.relative_to(FOLDER).as_posix()
        assert f"({name})" in text or f"`{name}`" in text, name


@pytest.mark.parametrize("name", ["sane.json", "gpu.json"])
def test_times_have_units_and_spreads(tmp_path, monkeypatch, name):
    row = {
        "n": 2048, "kept": 673, "plain_ttft_s": 2.0, "quickmerge_ttft_s": 0.05, "speedup": 40.0,
        "flop_limit": 1.29, "encoder_layers": 20, "num_layers": 30,
        "runs": {"plain_s": [1.9, 2.0, 2.1], "quickmerge_s": [0.04, 0.05]},
    }
    content = {"cpu": "a processor", "cores": 2, "eager": True, "ratio": 0.33, "rows": [row]}
    folder = tmp_path / "here"
    folder.mkdir()
    whole = {"floor": {}, "prefill": content, "rows": []} if name == "gpu.json" else content
    (folder / "prefill.json").write_text(json.dumps(whole))
    monkeypatch.setattr(stored, "HERE", tmp_path)
    text = speed.tables()
    assert "### here" in text
    assert "| 2,048 | 673 | 2 s (1.9 s - 2.1 s) | 50 ms (40 ms - 50 ms) | 40.00 |" in text
    assert "a processor, 2 cores" in text
