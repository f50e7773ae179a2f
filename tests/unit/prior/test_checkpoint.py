"""Checkpoints are whole or not there."""

from __future__ import annotations

import json

import pytest
import torch

from qm_vllm.prior import QuickMergePriorForCausalLM, checkpoint
from qm_vllm.prior.checkpoint import CheckpointError
from tests.unit.prior.conftest import make


def save(out, step, model=None):
    model = model or make()
    optimiser = torch.optim.AdamW(model.parameters())
    extra = {"noise": torch.Generator().get_state()}
    return checkpoint.save(out, step, model, extra, optimiser, {"step": step})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_that_fails_half_way_never_appears(tmp_path):
    def cut() -> None:
        with checkpoint.whole_folder(tmp_path / "a" / "done") as work:
            (work / "part").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut()
    assert names(tmp_path / "a") == []
    with checkpoint.whole_folder(tmp_path / "a" / "done") as work:
        (work / "part").write_text("whole")
    assert (tmp_path / "a" / "done" / "part").read_text() == "whole"


def test_the_newest_is_kept_and_the_ones_before_go(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    save(tmp_path, 9)
    save(tmp_path, 10)
    assert names(tmp_path / "checkpoints") == ["step-00000010"]
    assert checkpoint.latest(tmp_path).name == "step-00000010"


def test_a_crash_while_saving_leaves_the_one_before(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 2)
    assert names(tmp_path / "checkpoints") == ["step-00000001"]
    checkpoint.load(checkpoint.latest(tmp_path))


def test_loads_what_was_saved(tmp_path):
    model = make(seed=5)
    model_again, held, state = checkpoint.load(save(tmp_path, 3, model))
    assert state == {"step": 3}
    assert "noise" in held["extra"]
    for one, two in zip(model.parameters(), model_again.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("file", ["trainer.json", "optimizer.pt", "model.safetensors"])
def test_a_broken_file_is_said(tmp_path, file):
    folder = save(tmp_path, 3)
    (folder / file).write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=r"step-00000003 cannot be read.*remove it"):
        checkpoint.load(folder)


def test_nothing_pickled_is_read(tmp_path):
    """A file that would run code when unpickled is refused."""

    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    folder = save(tmp_path, 3)
    torch.save({"optimizer": Evil()}, folder / "optimizer.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(folder)


def test_published_files_load_by_themselves(tmp_path):
    model = make(seed=2)
    checkpoint.publish(tmp_path, model)
    assert names(tmp_path) == ["config.json", "model.safetensors"]
    loaded = QuickMergePriorForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    checkpoint.replace_file(tmp_path / "metrics.json", "{}")
    assert json.loads((tmp_path / "metrics.json").read_text()) == {}
