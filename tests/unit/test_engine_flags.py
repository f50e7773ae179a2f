"""Flags that go on to vLLM's engine, and what is said of those that nobody knows."""

from __future__ import annotations

import json
import os

import pytest
from typer.testing import CliRunner

from qm_vllm import local_engine
from qm_vllm.cli.main import app
from qm_vllm.errors import UserError

COMMANDS = {
    "generate": ("--model", "m", "--input", "in", "--output", "out"),
    "demo": (),
    "inspect": ("--input", "in", "--out", "page.html"),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command until it would start its engine; what it said, and the engine's arguments."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_text(json.dumps({"id": 1, "prompt": "x"}) + "\n")
    monkeypatch.setattr("qm_vllm.assets.embedded.ensure_model", lambda: tmp_path)
    monkeypatch.setattr("qm_vllm.cli.demo.demo_document", lambda: None)
    started = []

    def start(model, config, **given):
        started.append(given)
        raise UserError("no engine in this test")

    monkeypatch.setattr(local_engine, "start", start)

    def call(command, *flags):
        started.clear()
        done = CliRunner().invoke(app, [command, *COMMANDS[command], *flags])
        assert done.exit_code == 1
        assert "Traceback" not in done.output
        return " ".join(done.output.split()), (started or [None])[0]

    return call


@pytest.mark.parametrize("command", COMMANDS)
def test_any_argument_of_vllms_engine(run, command):
    _, given = run(
        command, "--block-size", "8", "--max_num_seqs=3", "-tp", "2", "--no-enable-prefix-caching",
        "--hf-overrides.rope_theta", "5", "--no-enforce-eager", "--verbose",
    )
    wanted = {
        "block_size": 8, "max_num_seqs": 3, "tensor_parallel_size": 2, "quiet": False,
        "enable_prefix_caching": False, "hf_overrides": {"rope_theta": 5}, "enforce_eager": False,
    }
    assert {name: given[name] for name in wanted} == wanted


def test_the_commands_own_flags_stay_its_own(run):
    _, given = run("generate", "--max-model-len", "77", "--dtype", "float32", "--eager")
    assert given == {"max_model_len": 77, "dtype": "float32", "enforce_eager": True, "quiet": True}


def test_the_demos_own_settings_give_way(run):
    own = run("demo")[1]
    assert (own["block_size"], own["max_model_len"], own["enable_prefix_caching"]) == (
        local_engine.BLOCK_SIZE, 8192, False
    )
    _, given = run("demo", "--max-model-len", "4k", "--block-size", "16")
    assert given == own | {"max_model_len": 4000, "block_size": 16}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--bloc-size", "8"), "--bloc-size is no flag of this command or of vLLM's engine; did "
                               "you mean --block-size?"),
        (("--block", "8"), "--block is no flag"),
        (("--rato", "0.3"), "did you mean --ratio?"),
        (("--max_tokens", "3"), "did you mean --max-tokens?"),
        (("--qqqqqq",), "--help shows the command's own"),
        (("--block-size", "many"), "argument --block-size: invalid int value: 'many'"),
        (("--max-num-seqs",), "argument --max-num-seqs: expected one argument"),
        (("--hf-overrides.a",), "--hf-overrides.a needs a value"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
        (("stray",), "'stray' belongs to no flag"),
        (("--block-size", "8", "stray"), "'stray' belongs to no flag"),
        (("--worker-cls", "x"), "--worker-cls is set by the plug-in itself; leave it out"),
        (("--kv_transfer_config.a=1",), "is set by the plug-in itself"),
    ],
)  # fmt: skip
def test_a_flag_that_nobody_knows_is_a_sentence(run, flags, said):
    told, given = run("generate", *flags)
    assert said in told
    assert given is None


def test_a_model_in_a_file_of_flags_is_refused(run, tmp_path):
    (tmp_path / "flags.yaml").write_text("model: other\n")
    assert "name the model with the command's own --model" in (
        run("generate", "--config", "flags.yaml")[0]
    )
    (tmp_path / "flags.yaml").write_text("worker-cls: other\n")
    assert "--worker-cls is set by the plug-in itself" in (
        run("generate", "--config", "flags.yaml")[0]
    )
    (tmp_path / "flags.yaml").write_text("block-size: 16\n")
    assert run("generate", "--config", "flags.yaml")[1]["block_size"] == 16


def test_reading_flags_leaves_the_environment_as_it_was(run, monkeypatch):
    """Replicas get what the user has set, and defaults of their own."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    assert run("generate", "--block-size", "8")[1]["block_size"] == 8
    assert "VLLM_CPU_KVCACHE_SPACE" not in os.environ
    assert os.environ["VLLM_LOGGING_LEVEL"] == "INFO"


def test_without_vllm_the_flag_is_a_sentence(run, monkeypatch):
    monkeypatch.setattr(local_engine, "find_spec", lambda name: None)
    assert "vLLM is not installed" in run("generate", "--block-size", "8")[0]
