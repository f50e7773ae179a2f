"""Entropy, dilated and plain window attention together: the default (query-aware)."""

from __future__ import annotations

import torch
from torch import Tensor

from qm_vllm.compress.evidence import Evidence
from qm_vllm.compress.normalize import average_rank
from qm_vllm.compress.saliency import dilated, entropy, window
from qm_vllm.config import QuickMergeConfig

NEEDS = entropy.NEEDS | dilated.NEEDS | window.NEEDS


def score(evidence: Evidence, config: QuickMergeConfig, k: int) -> Tensor:
    """``max(entropy_weight * rank(entropy), rank(dilated), rank(window))``.

    The maximum, not the sum: a token is kept where any one of the scores is sure of it. Our
    own score (design/algorithm.md, "Three-way fusion").

    Returns:
        [N] float32 in [0, 1].

    Raises:
        ValueError: the evidence lacks entropies or attention.
    """
    for kind in ("entropy", "attention"):
        evidence.require(kind, "fused")
    sharp = config.entropy_weight * average_rank(entropy.score(evidence, config, k))
    attended = torch.maximum(dilated.score(evidence, config, k), window.score(evidence, config, k))
    return torch.maximum(sharp, attended)
