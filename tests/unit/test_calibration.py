"""Calibration files: read, refused, matched to a model, and the choice of a depth."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from qm_vllm.calibration import FOLDER, Calibration, ModelShape, calibrated, load, shipped
from qm_vllm.config import ConfigError, QuickMergeConfig

SHAPE = ModelShape("LlamaForCausalLM", 12, 64, 4, 2, 512)
MODEL = SimpleNamespace(
    architectures=["LlamaForCausalLM"], num_hidden_layers=12, hidden_size=64,
    num_attention_heads=4, num_key_value_heads=2, vocab_size=512,
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "m.json"
    Calibration("m", SHAPE, 7, 3, {"samples": 1}).save(path)
    return path


def test_what_is_saved_is_read_and_no_part_stays(file):
    assert load(file) == Calibration("m", SHAPE, 7, 3, {"samples": 1})
    assert [path.name for path in file.parent.iterdir()] == ["m.json"]


def test_shape_of_a_model_without_grouped_heads():
    assert ModelShape.of(MODEL) == SHAPE
    plain = SimpleNamespace(**{**vars(MODEL), "num_key_value_heads": None, "architectures": None})
    assert ModelShape.of(plain) == ModelShape("unknown", 12, 64, 4, 4, 512)


def test_the_file_gives_the_depth_unless_layers_are_named(file):
    config = QuickMergeConfig(calibration=str(file))
    found = calibrated(config, MODEL)
    assert (found.encoder_layers, found.window_layers) == (7, 3)
    for named in ({"encoder_layers": 5}, {"window_layers": 1}, {"score_layers": (1, 3)}):
        own = QuickMergeConfig(calibration=str(file), **named)
        assert calibrated(own, MODEL) == own


def test_an_unknown_model_keeps_the_rule():
    assert shipped(SHAPE) is None
    assert calibrated(QuickMergeConfig(), MODEL) == QuickMergeConfig()


def test_a_calibration_of_another_model_says_so(file):
    other = SimpleNamespace(**{**vars(MODEL), "hidden_size": 128})
    with pytest.raises(ConfigError, match=r"made for LlamaForCausalLM, 12 layers of width 64.*"
                                          r"width 128.*qm-vllm calibrate"):
        calibrated(QuickMergeConfig(calibration=str(file)), other)


@pytest.mark.parametrize("change", [
    {"format": 2}, {"shape": {"layers": 3}}, {"encoder_layers": 13}, {"encoder_layers": "7"},
    {"window_layers": 8}, {"window_layers": 0},
])
def test_broken_files_are_named(file, change):
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ConfigError, match=r"m\.json' cannot be used .*qm-vllm calibrate"):
        load(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json' cannot be used \(FileNotFoundError"):
        load(tmp_path / "none.json")


def test_shipped_calibrations_are_whole_and_of_different_shapes():
    files = sorted(FOLDER.glob("*.json"))
    assert files
    found = [load(path) for path in files]
    assert len({calibration.shape for calibration in found}) == len(found)
    for calibration in found:
        assert shipped(calibration.shape) == calibration
        assert calibration.evidence["choices"]


def test_the_calibration_is_not_part_of_the_fingerprint():
    assert QuickMergeConfig(calibration="x").fingerprint() == QuickMergeConfig().fingerprint()
    with pytest.raises(ConfigError, match="calibration=3 must be the name of a file"):
        QuickMergeConfig(calibration=3)
