"""What the prompt's end looks up, at three lengths of evidence: the default (query-aware)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from qm_vllm.compress.evidence import Evidence
from qm_vllm.compress.normalize import shared_rank
from qm_vllm.compress.query_attention import QueryAttention
from qm_vllm.compress.saliency.base import Score
from qm_vllm.config import QuickMergeConfig

WINDOW_QUERIES = 64
"""Last positions of the prompt whose attention is recorded."""
NARROWEST_WINDOW = 2
"""Fewest layers in which it is recorded by default."""
SHARES = (0.2, 0.5, 0.3)
"""Of the budget, what passage, sentence and phrase get."""
FORWARD, BACKWARD = (64.0, 8.0, 2.0), 2.0
"""Tokens that passage, sentence and phrase reach forward; all reach as far backward."""
FLOOR = 1e-9
"""Attention below this counts as none."""


def window_layers(num_layers: int) -> int:
    """Layers just below E whose attention is recorded by default: a fifth of all.

    What looks things up sits in few layers: where nobody has measured which, a wider window is
    safer (docs/decisions.md).
    """
    return max(NARROWEST_WINDOW, round(num_layers / 5))


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
    views = torch.stack((seen.recent, seen.question, seen.energy.sqrt()))
    views[:, : config.protect_first] = 0
    views[:, max(0, views.shape[1] - config.protect_last) :] = 0
    spread = reach(views, forward_reach(views.device), BACKWARD)
    return shared_rank(list(zip(spread, SHARES, strict=True)))


def reach(weights: Tensor, forward: float | Tensor, backward: float) -> Tensor:
    """Log of weights spread to their neighbours with exponential decay.

    Args:
        weights: [..., N] >= 0.
        forward, backward: tokens after which a weight falls to 1/e, to either side; forward
            may be one for each row, [..., 1] float64.

    Returns:
        [..., N] float64: ``max(max_{j<=i} log w_j - (i-j)/forward, max_{j>=i} log w_j -
        (j-i)/backward)``, with w at least :data:`FLOOR`.
    """
    logs = weights.double().clamp_min(FLOOR).log()
    place = torch.arange(logs.shape[-1], dtype=torch.float64, device=logs.device)
    ahead, behind = place / forward, place / backward
    after = torch.cummax(logs + ahead, -1).values - ahead
    before = torch.cummax((logs - behind).flip(-1), -1).values.flip(-1) + behind
    return torch.maximum(after, before)


@lru_cache
def forward_reach(device: torch.device) -> Tensor:
    """:data:`FORWARD` as [3, 1] float64, copied to a device once, as each copy waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(FORWARD, dtype=torch.float64, device=device)[:, None]


SCORE = Score(
    "query",
    needs=frozenset({"attention"}),
    options=frozenset({"window_layers", "protect_first", "protect_last"}),
    score=score,
)
