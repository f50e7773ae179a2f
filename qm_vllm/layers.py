"""Which layers of a model encode the prompt, which score it: one rule for engine and bench."""

from __future__ import annotations

from qm_vllm.compress.saliency import entropy, query
from qm_vllm.compress.saliency.query import WINDOW_QUERIES as WINDOW_QUERIES
from qm_vllm.config import ConfigError, QuickMergeConfig


def encoder_depth(config: QuickMergeConfig, num_layers: int) -> int:
    """E: as configured, else two thirds of the model's layers."""
    return config.encoder_layers or max(1, round(num_layers * 2 / 3))


def window_layers(config: QuickMergeConfig, num_layers: int) -> int:
    """Layers just below E whose attention is recorded: as configured, else the score's default."""
    return config.window_layers or query.window_layers(num_layers)


def resolve_layers(config: QuickMergeConfig, num_layers: int) -> tuple[int, tuple[int, int]]:
    """E, and the half-open range of layers whose input states are scored.

    Args:
        num_layers: layers of the model.

    Raises:
        ConfigError: E or the window is more than the model has, or a score layer lies above E.
    """
    depth = encoder_depth(config, num_layers)
    if depth > num_layers:
        raise ConfigError(f"encoder_layers={depth} is more than the model's {num_layers} layers")
    if config.window_layers is not None and config.window_layers > num_layers:
        raise ConfigError(
            f"window_layers={config.window_layers} is more than the model's {num_layers} layers"
        )
    score = config.score_layers or entropy.score_layers(num_layers)
    if config.score_layers is None and score[1] > depth:
        score = (max(0, depth - 1), depth)
    if score[1] > depth:
        raise ConfigError(f"score_layers={score} must end at or below encoder_layers={depth}")
    return depth, score


def check_layers(config: QuickMergeConfig, num_layers: int, *, window: bool) -> None:
    """Check the layers that a request names against the model.

    Args:
        num_layers: layers of the model.
        window: whether the request itself names ``window_layers``. One that only lowers E may
            keep the engine's window: what is left of it is read.

    Raises:
        ConfigError: the model does not have these layers.
    """
    depth, _ = resolve_layers(config, num_layers)
    if window and config.window_layers is not None and config.window_layers > depth:
        raise ConfigError(
            f"window_layers={config.window_layers} is more than encoder_layers={depth}"
        )
