"""Why a request goes to plain vLLM, and what can still be scored without a model's layers."""

from __future__ import annotations

from dataclasses import replace

from qm_vllm.compress import SALIENCIES, needs
from qm_vllm.config import QuickMergeConfig


class Untouched(Exception):
    """The request goes to plain vLLM; the message is the reason in its report.

    Attributes:
        kind: the same in one word, for the metrics.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def without_layers(config: QuickMergeConfig) -> QuickMergeConfig:
    """The configuration for scoring token embeddings alone.

    Raises:
        Untouched: it needs attention.
    """
    if config.max_error is not None:
        raise Untouched(
            "no_attention",
            f"max_error={config.max_error} needs attention, and this model has no adapter; use "
            "ratio or max_kept",
        )
    if config.hint:
        raise Untouched(
            "no_attention",
            'a hint needs attention, and this model has no adapter; use delivery="native"',
        )
    if config.saliency == "auto":
        config = replace(config, saliency="entropy")
    blind = [name for name, score in SALIENCIES.items() if "attention" not in score.needs]
    if "attention" in needs(config):
        raise Untouched(
            "no_attention",
            f"saliency={config.saliency!r} needs attention, and this model has no adapter; use "
            f"{', '.join(('auto', *blind))}",
        )
    return config
