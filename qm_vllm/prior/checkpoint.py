"""Checkpoints of a training run: whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from qm_vllm.prior.model import QuickMergePriorForCausalLM

FOLDER = "checkpoints"
STATE, OPTIMISER = "trainer.json", "optimizer.pt"


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says which and why."""


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that appears as ``target`` only if nothing went wrong."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield work
        work.chmod(0o755)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def replace_file(target: Path, text: str) -> None:
    """Write a text file that is either the old or the new one."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=target.parent, prefix=f".{target.name}-", delete=False
    ) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, target)


def save(
    out: Path, step: int, model: QuickMergePriorForCausalLM, extra: dict[str, torch.Tensor],
    optimiser: torch.optim.Optimizer, state: dict[str, Any],
) -> Path:
    """Write ``checkpoints/step-N`` and remove the ones before it."""
    target = out / FOLDER / f"step-{step:08d}"
    with whole_folder(target) as work:
        model.save_pretrained(work)
        torch.save({"optimizer": optimiser.state_dict(), "extra": extra}, work / OPTIMISER)
        (work / STATE).write_text(json.dumps(state, indent=1) + "\n")
    for other in sorted((out / FOLDER).glob("step-*")):
        if other != target:
            shutil.rmtree(other)
    return target


def latest(out: Path) -> Path | None:
    """The newest checkpoint of a run, None if there is none."""
    found = sorted((out / FOLDER).glob("step-*"))
    return found[-1] if found else None


def load(folder: Path) -> tuple[QuickMergePriorForCausalLM, dict[str, Any], dict[str, Any]]:
    """Model, what :func:`save` put beside it, and the trainer's state.

    Raises:
        CheckpointError: a file is missing or broken.
    """
    try:
        state = json.loads((folder / STATE).read_text())
        held = torch.load(folder / OPTIMISER, weights_only=True, map_location="cpu")
        model = QuickMergePriorForCausalLM.from_pretrained(folder)
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint {folder.name} cannot be read ({type(error).__name__}); remove it to "
            "begin anew"
        ) from error
    return model, held, state


def publish(out: Path, model: QuickMergePriorForCausalLM) -> None:
    """Put config.json and model.safetensors into ``out``, each whole, the weights first."""
    with tempfile.TemporaryDirectory(prefix=".final-", dir=out) as name:
        work = Path(name)
        model.save_pretrained(work)
        for file in sorted(work.iterdir(), reverse=True):
            file.chmod(0o644)
            os.replace(file, out / file.name)
