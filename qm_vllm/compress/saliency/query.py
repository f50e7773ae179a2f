"""What the prompt's end looks up, at three lengths of evidence: the default (query-aware)."""

from __future__ import annotations

import torch
from torch import Tensor

from qm_vllm.compress.evidence import Evidence
from qm_vllm.compress.normalize import shared_rank
from qm_vllm.compress.query_attention import QueryAttention
from qm_vllm.config import QuickMergeConfig

NEEDS = frozenset({"attention"})

PASSAGE, SENTENCE, PHRASE = 0.2, 0.5, 0.3
"""Share of the budget that each length gets."""
FLOOR = 1e-9
"""Attention below this counts as none."""


def score(evidence: Evidence, config: QuickMergeConfig) -> Tensor:
    """Interleaved ranks of three views of the same attention, each spread over its length.

    - passage: what the last few positions point at, reaching 64 tokens forward. Copying heads
      look at the token before the text that will be needed.
    - sentence: what any query of the question points at, reaching 8 tokens forward.
    - phrase: what many heads look at, 2 tokens to either side: scattered short evidence.

    ``reach``: ``d_i = max_j w_j exp(-(i - j) / length)``, so that a strong peak takes more of
    its surroundings than a weak one. The first ``protect_first`` and the last ``protect_last``
    positions score nothing; they are kept anyway. Our own score: docs/decisions.md.

    Returns:
        [N] float32 in [0, 1].

    Raises:
        ValueError: the evidence holds no attention.
    """
    evidence.require("attention", "query")
    seen = QueryAttention.joined(evidence.attention)
    parts = (
        (reach(_inner(seen.recent, config), 64, 2), PASSAGE),
        (reach(_inner(seen.question, config), 8, 2), SENTENCE),
        (reach(_inner(seen.energy.sqrt(), config), 2, 2), PHRASE),
    )
    return shared_rank(parts)


def reach(weights: Tensor, forward: float, backward: float) -> Tensor:
    """Log of weights spread to their neighbours with exponential decay.

    Args:
        weights: [N] >= 0.
        forward, backward: tokens after which a weight falls to 1/e, to either side.

    Returns:
        [N] float64: ``max(max_{j<=i} log w_j - (i-j)/forward, max_{j>=i} log w_j -
        (j-i)/backward)``, with w at least :data:`FLOOR`.
    """
    logs = weights.double().clamp_min(FLOOR).log()
    place = torch.arange(len(logs), dtype=torch.float64, device=logs.device)
    after = torch.cummax(logs + place / forward, 0).values - place / forward
    before = torch.cummax((logs - place / backward).flip(0), 0).values.flip(0) + place / backward
    return torch.maximum(after, before)


def _inner(weights: Tensor, config: QuickMergeConfig) -> Tensor:
    inner = weights.clone()
    inner[: config.protect_first] = 0
    inner[max(0, len(inner) - config.protect_last) :] = 0
    return inner
