"""Low attention entropy: the paper's stage 1, query-blind."""

from __future__ import annotations

import torch
from torch import Tensor

from qm_vllm.compress.evidence import Evidence
from qm_vllm.compress.normalize import min_max
from qm_vllm.config import QuickMergeConfig

NEEDS = frozenset({"entropy"})


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
