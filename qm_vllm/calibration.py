"""Which layers encode and which look things up, as ``qm-vllm calibrate`` measured it; JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from qm_vllm.config import ConfigError, QuickMergeConfig

FORMAT = 1
FOLDER = Path(__file__).with_name("calibrations")
"""Calibrations that come with the package."""


@dataclass(frozen=True)
class ModelShape:
    """What makes two checkpoints the same to a calibration."""

    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """Of a transformers text configuration."""
        heads = int(config.num_attention_heads)
        return cls(
            architecture=(getattr(config, "architectures", None) or ["unknown"])[0],
            num_layers=int(config.num_hidden_layers),
            hidden_size=int(config.hidden_size),
            num_heads=heads,
            num_kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            vocab_size=int(config.vocab_size),
        )

    def __str__(self) -> str:
        return (
            f"{self.architecture}, {self.num_layers} layers of width {self.hidden_size}, "
            f"{self.num_heads}/{self.num_kv_heads} heads, vocabulary {self.vocab_size}"
        )


@dataclass(frozen=True)
class Calibration:
    """The content of a calibration file.

    Attributes:
        model: name, for people.
        encoder_layers: E that was chosen. window_layers: how many just below it are read.
        evidence: how it was measured and what came out, as ``qm-vllm calibrate`` wrote it.
    """

    model: str
    shape: ModelShape
    encoder_layers: int
    window_layers: int
    evidence: dict[str, Any]

    def save(self, file: Path) -> None:
        """Write the file whole or not at all."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        part = file.with_name(f".{file.name}.part")
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        part.replace(file)


def load(file: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        ConfigError: it cannot be read or is no calibration of this format.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, not {FORMAT}")
        shape = ModelShape(**content["shape"])
        depth, window = content["encoder_layers"], content["window_layers"]
        for name, value, most in (
            ("encoder_layers", depth, shape.num_layers), ("window_layers", window, depth),
        ):
            if not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{name}={value!r} of {shape.num_layers} layers")
        return Calibration(content["model"], shape, depth, window, content["evidence"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"calibration {str(file)!r} cannot be used ({type(error).__name__}: {error}); make "
            "it with `qm-vllm calibrate`"
        ) from error


@lru_cache
def shipped(shape: ModelShape) -> Calibration | None:
    """The calibration that comes with the package for a model of this shape."""
    for file in sorted(FOLDER.glob("*.json")):
        found = load(file)
        if found.shape == shape:
            return found
    return None


def calibrated(config: QuickMergeConfig, model: Any) -> QuickMergeConfig:
    """The configuration with the layers for this model, where nobody has named any.

    Args:
        model: transformers text configuration of the served model.

    Raises:
        ConfigError: the configured calibration cannot be read or is of another model.
    """
    named = (config.encoder_layers, config.window_layers, config.score_layers)
    if any(value is not None for value in named):
        return config
    shape = ModelShape.of(model)
    if config.calibration is None:
        found = shipped(shape)
    else:
        found = load(Path(config.calibration))
        if found.shape != shape:
            raise ConfigError(
                f"calibration {config.calibration!r} was made for {found.shape}; the model has "
                f"{shape}: make one for it with `qm-vllm calibrate`, or leave it out"
            )
    if found is None:
        return config
    return dataclasses.replace(
        config, encoder_layers=found.encoder_layers, window_layers=found.window_layers
    )
