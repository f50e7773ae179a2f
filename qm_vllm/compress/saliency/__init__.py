"""Scores that say which tokens to keep, one file a method, all behind one interface."""

from __future__ import annotations

from types import ModuleType
from typing import Protocol

from torch import Tensor

from qm_vllm.compress.evidence import Evidence
from qm_vllm.compress.saliency import entropy, ned, norm, query
from qm_vllm.config import ConfigError, QuickMergeConfig


class Score(Protocol):
    """``score(evidence, config)``: [N] float32 in [0, 1], higher = keep."""

    def __call__(self, evidence: Evidence, config: QuickMergeConfig) -> Tensor: ...


_MODULES: dict[str, ModuleType] = {
    "query": query,
    "entropy": entropy,
    "norm": norm,
    "ned": ned,
}

SALIENCIES: dict[str, Score] = {name: module.score for name, module in _MODULES.items()}
"""Score function by configured name ("auto" resolves to one of these)."""

NEEDS: dict[str, frozenset[str]] = {name: module.NEEDS for name, module in _MODULES.items()}
"""Evidence that each score reads, by name."""


def needs(config: QuickMergeConfig) -> frozenset[str]:
    """Kinds of evidence to gather: the score's, alpha's entropy, max_error's attention."""
    wanted = NEEDS[_name(config)]
    if config.alpha is not None:
        wanted |= {"entropy"}
    return wanted if config.max_error is None else wanted | {"attention"}


def score_tokens(evidence: Evidence, config: QuickMergeConfig) -> Tensor:
    """Score every token by the configured method.

    Args:
        evidence: of one prompt of N tokens; must hold what :func:`needs` names.
        config: chooses the method and its settings.

    Returns:
        [N] float32 in [0, 1], higher = keep.

    Raises:
        ValueError: evidence is missing; the message says which and how to supply it.
    """
    return SALIENCIES[_name(config)](evidence, config)


def _name(config: QuickMergeConfig) -> str:
    name = config.effective_saliency
    if name not in SALIENCIES:
        raise ConfigError(f"saliency={name!r} is unknown; allowed: {', '.join(SALIENCIES)}")
    return name
