"""Attention from the end of the prompt, dilated forward (query-aware)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad

from qm_vllm.compress.evidence import Evidence
from qm_vllm.compress.normalize import average_rank, min_max
from qm_vllm.config import QuickMergeConfig

NEEDS = frozenset({"attention"})

QUERIES = 16
"""Last positions whose attention counts."""
BLIND_TAIL = 40
"""Last positions that score nothing: attention near home says nothing about evidence."""
LOOKBACK = 4
"""Positions before an attended one that it also pulls in."""
MIN_SPAN = 16
"""Shortest forward span, unless the configured dilation is shorter."""


def score(evidence: Evidence, config: QuickMergeConfig, k: int) -> Tensor:
    """Rank of the window attention after dilation.

    w is the attention of the last :data:`QUERIES` positions, averaged, min-max scaled per
    layer and summed over the window layers, 0 at the first ``config.protect_first`` and the
    last :data:`BLIND_TAIL` positions. ``d_i = max(w_{i-span}, ..., w_{i+4})`` with ``span =
    min(config.dilation, max(16, k // 4))``: copying layers point at the token before the
    passage that will be needed. Our own score (design/algorithm.md), not the paper's.

    Returns:
        [N] float32 in [0, 1], the average rank of d.

    Raises:
        ValueError: the evidence holds no attention.
    """
    evidence.require("attention", "dilated")
    layers = [min_max(weights[-QUERIES:].float().mean(0)) for weights in evidence.attention]
    summed = torch.stack(layers).sum(0)
    summed[: config.protect_first] = 0
    summed[max(0, evidence.num_tokens - BLIND_TAIL) :] = 0
    span = min(config.dilation, max(MIN_SPAN, k // 4))
    padded = pad(summed[None, None], (span, LOOKBACK), value=0.0)
    return average_rank(max_pool1d(padded, span + LOOKBACK + 1, stride=1)[0, 0])
