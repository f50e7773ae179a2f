"""Low attention entropy: the paper's stage 1, query-blind."""

from __future__ import annotations

import torch
from torch import Tensor

from qm_vllm.compress.evidence import Evidence
from qm_vllm.compress.normalize import min_max
from qm_vllm.compress.saliency.base import Score
from qm_vllm.config import QuickMergeConfig


def score_layers(num_layers: int) -> tuple[int, int]:
    """Half-open range of the layers whose input states give the entropy, by default: those
    between a sixth and a third of the depth."""
    first = num_layers // 6
    return first, max(first + 1, num_layers // 3)


def score(evidence: Evidence, config: QuickMergeConfig) -> Tensor:
    """Mean over layers of ``1 - Normalize(H)`` with min-max scaling (paper 3.2).

    The paper's formula lacks the "1 -", its text ("favors sharp attention tokens") has it.

    Returns:
        [N] float32 in [0, 1].

    Raises:
        ValueError: the evidence holds no entropies.
    """
    evidence.require("entropy", "entropy")
    return torch.stack([1 - min_max(layer) for layer in evidence.entropies]).mean(0)


SCORE = Score(
    "entropy",
    needs=frozenset({"entropy"}),
    options=frozenset({"score_layers", "logit_scale"}),
    score=score,
)
