"""``qm-vllm eval paper-tables``: what it refuses, before anything is trained."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from qm_vllm.cli.main import app


@pytest.fixture
def call(tmp_path):
    def run(*arguments):
        done = CliRunner().invoke(
            app, ["eval", "paper-tables", "--out", str(tmp_path / "out"), *map(str, arguments)]
        )
        assert "Traceback" not in done.output
        return done.exit_code, " ".join(done.output.split())

    return run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--scale", "huge"), "no --scale 'huge'; there are smoke, small, medium, full"),
        (("--tables", "1,6"), "--tables has '6'; there are 1, 2, 3, 4, 5"),
        (("--tasks", "audio"), "--tasks has 'audio'; there are text, image, video"),
        (("--device", "tpu"), "no --device 'tpu'; there are auto, cpu and cuda"),
    ],
)
def test_options_that_do_not_exist(call, arguments, sentence):
    code, said = call(*arguments)
    assert code == 1
    assert sentence in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there(call):
    code, said = call("--device", "cuda")
    assert code == 1
    assert "no CUDA device; use cpu" in said


def test_full_without_data_says_where_they_are(call, tmp_path, monkeypatch):
    monkeypatch.setenv("QM_VLLM_CACHE", str(tmp_path / "empty"))
    code, said = call("--scale", "full", "--tables", "1", "--tasks", "text", "--device", "cpu")
    assert code == 1
    assert "WikiText-103" in said
    assert "huggingface.co/datasets/Salesforce/wikitext" in said
