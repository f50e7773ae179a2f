"""The model folder, and skips where a peer's environment is not there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from qm_vllm_eval.peers.environment import PeerMissing, peer_python

MODEL = Path("~/.cache/qm_vllm/SmolLM2-135M-Instruct")


@pytest.fixture(scope="session")
def model_folder() -> Path:
    folder = Path(os.environ.get("QM_VLLM_TEST_MODEL", MODEL)).expanduser()
    if not (folder / "config.json").exists():
        pytest.skip(f"no model in {folder}; the demo puts it there")
    return folder


def interpreter(peer: str) -> Path:
    try:
        return peer_python(peer)
    except PeerMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kvpress_python() -> Path:
    return interpreter("kvpress")


@pytest.fixture(scope="session")
def llmlingua_python() -> Path:
    return interpreter("llmlingua")


def run_in(python: Path, code: str, *arguments: object) -> str:
    """Run code in a peer's environment; its standard output. A failure shows its stderr."""
    command = [str(python), "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
