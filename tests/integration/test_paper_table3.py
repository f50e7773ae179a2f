"""Table 3 with tiny models: every row is whole, and the blocks are those of the arithmetic."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from qm_vllm.encoders import load_encoder
from qm_vllm_eval.paper import table3
from qm_vllm_eval.paper.table3 import METHODS, Table3Settings, markdown, measure
from qm_vllm_eval.paper.table3_prior import merge, passages
from qm_vllm_eval.paper.table3_process import Child
from tests.engines import make_tiny_model

pytestmark = pytest.mark.slow
BLOCK, GENERATED, BATCH, TOKENS = 32, 6, 4, 96
SERVED = ((100, 3), (160, 2))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    model = make_tiny_model("llama", tmp_path_factory.mktemp("tiny"))
    return Table3Settings(
        name="tiny", prior=(2, 64, 2), tokens=TOKENS, batch=BATCH, served=SERVED,
        model=str(model), ratio=0.42, generated=GENERATED, repeats=2, block_size=BLOCK,
        dtype="float32", enforce_eager=True,
    )


@pytest.fixture(scope="module")
def rows(settings):
    return measure(settings)


def by_shape(rows):
    return list(zip(rows[::2], rows[1::2], strict=True))


def test_there_is_a_plain_and_a_compressed_row_for_each_shape(rows):
    assert [row["shape"] for row in rows[::2]] == ["paper", "served 100", "served 160"]
    for plain, ours in by_shape(rows):
        assert (plain["method"], ours["method"]) == METHODS
        assert plain["shape"] == ours["shape"]
        assert plain["model"] == ours["model"]
        assert plain.keys() == ours.keys() == rows[0].keys()
    json.dumps(rows)  # plain values only


def test_the_paper_shape_keeps_the_ratio_exactly(rows):
    plain, ours = rows[:2]
    kept = math.ceil(0.42 * TOKENS)
    assert (plain["tokens_mean"], ours["tokens_mean"]) == (TOKENS, kept)
    assert plain["tokens_std"] == ours["tokens_std"] == 0
    assert ours["change_tokens"] == pytest.approx(100 * (kept / TOKENS - 1))
    assert ours["preprocessing_ms"] > 0
    assert plain["preprocessing_ms"] is None
    assert plain["encoder_ms"] == ours["encoder_ms"] > 0  # both read encoded states


def test_blocks_held_are_those_of_the_positions(rows):
    for row in rows:
        positions = row["tokens_mean"] + GENERATED - 1
        needed = row["batch"] * -(-positions // BLOCK)
        assert row["kv_blocks_needed"] == needed
        if row["shape"] == "paper" or row["method"] == "baseline":
            assert row["kv_blocks"] == needed
        else:  # jobs may end in different steps, and a request leave before the last one grows
            assert row["kv_blocks"] <= needed
        block = row["kv_mb"] / row["kv_blocks"]
        assert row["kv_mb_positions"] == pytest.approx(row["batch"] * positions * block / BLOCK)
        assert row["kv_mb_prompt"] < row["kv_mb_positions"] <= needed * block + 1e-12


def test_a_block_has_the_bytes_of_the_shape(rows):
    """Keys and values, float32: the prior's 2 layers of width 64, the tiny llama's 6 of 2 x 32."""
    for row in rows:
        numbers = 2 * 64 if row["shape"] == "paper" else 6 * 2 * 32
        assert row["kv_mb"] == pytest.approx(row["kv_blocks"] * BLOCK * 2 * numbers * 4 / 1e6)


def test_the_served_prompts_are_compressed_to_whole_blocks_and_one(rows):
    for plain, ours in by_shape(rows)[1:]:
        assert plain["tokens_mean"] == plain["source_tokens"]
        assert ours["tokens_mean"] < plain["tokens_mean"]
        assert ours["tokens_mean"] % BLOCK == 1
        assert ours["change_kv_mb"] < 0
        for name in ("preprocessing", "encoder", "upper"):
            assert ours[f"{name}_ms"] > 0
            assert plain[f"{name}_ms"] is None


def test_times_have_their_spread(rows, settings):
    for row in rows:
        assert row["repeats"] == settings.repeats
        for name in ("latency_ms", "ttft_ms"):
            assert 0 < row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
        for name in ("change_latency", "change_ttft"):
            if row["method"] == "baseline":
                assert row[name] is None
            else:
                assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]


def test_the_table_has_a_line_for_each_row(rows):
    lines = markdown(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1


def test_the_command_writes_what_it_measured(rows, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(table3, "measure", lambda settings, say: asked.append(settings) or rows)
    file = tmp_path / "out.json"
    table3.main(["--scale", "smoke", "--repeats", "3", "--json", str(file)])
    assert (asked[0].name, asked[0].repeats, asked[0].served) == ("smoke", 3, ())
    held = json.loads(file.read_text())
    assert held["rows"] == rows
    assert held["arguments"]["repeats"] == 3
    assert "hardware" in held
    assert "| paper | 4 | baseline |" in capsys.readouterr().out


def test_a_batch_is_merged_row_by_row():
    layers = [torch.randn(3, 40, 16, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    states = merge(layers, 0.42)
    assert states.shape == (3, math.ceil(0.42 * 40), 16)
    torch.testing.assert_close(states[1:2], merge([layer[1:2] for layer in layers], 0.42))
    # An anchor keeps at least 1 / 1.1 of its group's mass, so a merged state stays near it.
    for row, own in zip(states, layers[-1], strict=True):
        distances, anchors = torch.cdist(row, own).min(1)
        assert anchors.tolist() == sorted(set(anchors.tolist()))
        assert anchors[-1] == 39
        assert float(distances.max()) < 0.2 * float(own.norm(dim=1).max())


def failing(message):
    raise ValueError(message)


def shouting(word):
    def answer(other):
        return failing(other) if other == "fail" else f"{word} {other}!"

    return answer


def test_a_failing_process_says_why():
    child = Child(failing, "no such weights")
    with pytest.raises(RuntimeError, match="no such weights"):
        child.ready()
    child.stop()


def test_a_process_answers_until_it_fails():
    child = Child(shouting, "oh")
    assert child.ready() is None
    assert child.ask("no") == "oh no!"
    with pytest.raises(RuntimeError, match="ValueError: fail"):
        child.ask("fail")
    child.stop()


def test_texts_that_cannot_be_used(settings, tmp_path):
    settings = replace(settings, texts=tmp_path)
    with pytest.raises(ValueError, match=r"holds no \.txt files"):
        passages(None, settings)
    (tmp_path / "short.txt").write_text("A few words.")
    with pytest.raises(ValueError, match="too short"):
        passages(load_encoder("minilm"), settings)


@pytest.mark.parametrize("change", [
    {"ratio": 0.0}, {"repeats": 0}, {"generated": 2}, {"served": ((3, 1),)}, {"batch": 0},
])
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match=r"must|cannot"):
        Table3Settings(**change)
