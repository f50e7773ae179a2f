"""``qm-vllm eval ego4d-nlq``: what it refuses, before any engine starts."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from qm_vllm.cli.main import app
from qm_vllm_eval.datasets.ego4d_synthetic import SyntheticSpec, write_synthetic
from qm_vllm_eval.ego4d.task import Ego4dTask
from tests.unit.prior.conftest import make

SPEC = SyntheticSpec(videos=1, clips_per_video=1, queries_per_clip=1, events_per_clip=2, kinds=4,
                     width=8, clip_seconds=(60, 80), event_seconds=(3.2, 8))


@pytest.fixture
def run(tmp_path):
    def call(*arguments):
        done = CliRunner().invoke(
            app, ["eval", "ego4d-nlq", "--out", str(tmp_path / "out"), *map(str, arguments)]
        )
        assert "Traceback" not in done.output
        return done.exit_code, " ".join(done.output.split())

    return call


def test_data_that_are_not_there(run, tmp_path):
    code, said = run("--data", tmp_path / "nowhere", "--replicas", 0)
    assert code == 1
    assert "cannot be read: No such file" in said


def test_features_that_are_not_there(run, tmp_path):
    for split in ("train", "val"):
        write_synthetic(tmp_path / "data", split, SPEC)
    code, said = run("--data", tmp_path / "data", "--features", tmp_path / "none")
    assert code == 1
    assert "there is no folder" in said


def test_a_prior_without_time_bins(run, tmp_path):
    make(num_time_bins=0).save_pretrained(tmp_path / "prior")
    write_synthetic(tmp_path / "data", "val", SPEC)
    code, said = run("--data", tmp_path / "data", "--prior", tmp_path / "prior")
    assert code == 1
    assert "prior has no time-bin head" in said


def test_a_folder_that_is_no_prior(run, tmp_path):
    code, said = run("--data", tmp_path, "--prior", tmp_path / "none")
    assert code == 1
    assert "none" in said


def test_features_of_another_width_than_the_priors_are_reasons(tmp_path):
    file = write_synthetic(tmp_path, "val", SPEC)
    task = Ego4dTask(str(file), str(tmp_path / "features"), (1.0, 0.5), width=10, most_tokens=1000)
    units = list(task.units())
    assert len(units) == 3
    assert all("width 8, not 10" in unit.reason for unit in units)
