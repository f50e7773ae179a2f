"""``qm-vllm train-prior`` from features and a manifest; what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from qm_vllm.cli.main import app
from qm_vllm.prior import PriorConfig, QuickMergePriorForCausalLM

SMALL = ("--layers", "1", "--width", "16", "--heads", "2", "--batch-size", "4", "--minutes", "0.02",
         "--time-bins", "8", "--device", "cpu")


@pytest.fixture
def features(tmp_path):
    """Twenty files of features and a manifest with spans; every third has a label too."""
    rows = []
    for number in range(20):
        steps = torch.randn(30, 12, generator=torch.Generator().manual_seed(number)).cumsum(0)
        torch.save(steps.half(), tmp_path / f"video{number}.pt")
        span = {"span": [0.2, 0.5]} if number % 3 else {"label": number % 2}
        rows.append(json.dumps({"path": f"video{number}.pt", **span}))
    manifest = tmp_path / "train.jsonl"
    manifest.write_text("\n".join(rows))
    return manifest


def run(*arguments):
    return CliRunner().invoke(app, ["train-prior", *map(str, arguments)])


def test_trains_on_features_with_both_heads_and_goes_on(features, tmp_path):
    out = tmp_path / "prior"
    arguments = ("--data", features, "--encoder", "features", "--out", out, *SMALL)
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    config = PriorConfig.from_pretrained(out)
    assert (config.input_size, config.time_features) == (28, 16)
    assert (config.num_time_bins, config.num_classes, config.num_tokens) == (8, 2, 0)
    assert config.encoder == "features of width 12"
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"heldout_l_ar", "copy_last", "mean_state", "tokens", "seconds",
            "heldout_target_nll"} <= metrics.keys()
    assert (out / "loss.png").stat().st_size > 5000
    QuickMergePriorForCausalLM.from_pretrained(out)
    again = run(*arguments[:-6], "--minutes", "0.06", *arguments[-4:])
    assert again.exit_code == 0, again.output
    assert json.loads((out / "metrics.json").read_text())["steps"] > metrics["steps"]


def test_a_folder_of_features_is_data_too(features, tmp_path):
    done = run("--data", features.parent / "video3.pt", "--heldout", features.parent / "video4.pt",
               "--encoder", "features", "--out", tmp_path / "p", *SMALL)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--encoder", "features"), "not text"),
        (("--encoder", "no-such-encoder-here"), "no encoder that can be loaded"),
        (("--encoder", "minilm", "--window", "4"), "window_tokens=4 must be at least 8"),
        (("--encoder", "minilm", "--heads", "7"), "hidden_size=16 must be a multiple"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(tmp_path, arguments, message):
    text = tmp_path / "text.txt"
    text.write_text("words and more words " * 400)
    done = run("--data", text, "--out", tmp_path / "prior", *SMALL, *arguments)
    assert done.exit_code == 1
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_features_are_not_read_by_a_text_encoder(features, tmp_path):
    done = run("--data", features, "--encoder", "minilm", "--out", tmp_path / "prior", *SMALL)
    assert done.exit_code == 1
    assert "train on them with --encoder features" in " ".join(done.output.split())


def test_one_bad_file_is_named(features, tmp_path):
    torch.save(torch.full((30, 12), float("nan")), features.parent / "video0.pt")
    done = run("--data", features, "--encoder", "features", "--out", tmp_path / "p", *SMALL)
    assert done.exit_code == 1
    assert "video0.pt hold nan" in " ".join(done.output.split())
