"""Plain attention from the end of the prompt (query-aware)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import max_pool1d

from qm_vllm.compress.evidence import Evidence
from qm_vllm.compress.normalize import average_rank
from qm_vllm.config import QuickMergeConfig

NEEDS = frozenset({"attention"})

QUERIES = 32
"""Last positions whose attention counts."""
POOL = 7
"""Width of the max-pool over positions."""


def score(evidence: Evidence, config: QuickMergeConfig, k: int) -> Tensor:
    """Rank of the attention that the last positions pay in the top window layer.

    Mean over the last :data:`QUERIES` queries, max-pooled over :data:`POOL` positions.

    Returns:
        [N] float32 in [0, 1].

    Raises:
        ValueError: the evidence holds no attention.
    """
    evidence.require("attention", "window")
    paid = evidence.attention[-1][-QUERIES:].float().mean(0)
    pooled = max_pool1d(paid[None, None], POOL, stride=1, padding=POOL // 2)[0, 0]
    return average_rank(pooled)
