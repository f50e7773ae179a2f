"""What the prompt's end looks up, at three lengths of evidence: the default (query-aware)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qm_vllm.compress.normalize import shared_rank
from qm_vllm.compress.saliency.base import Score
from qm_vllm.config import QuickMergeConfig

if TYPE_CHECKING:
    from qm_vllm.compress.evidence import Evidence

WINDOW_QUERIES = 64
"""Last positions of the prompt whose attention is recorded."""
NARROWEST_WINDOW = 2
"""Fewest layers in which it is recorded by default."""
RECENT = 8
"""Last positions that say what is being continued."""
AGE = 24.0
"""Tokens after which a query's say falls to 1/e: questions stand at the end of a prompt."""
PASSAGE, SENTENCE, PHRASE = 0.2, 0.5, 0.3
"""Share of the budget that each length gets."""
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


@dataclass(frozen=True, eq=False)
class QueryAttention:
    """Attention of a prompt's last positions in some heads, per token of the prompt.

    Heads are not averaged: few of them look things up, and a mean drowns these.

    Attributes:
        recent: [N] float32, the highest attention of any head, mean over :data:`RECENT` queries.
        question: [N] float32, the highest attention of any head and query, queries weighted by
            ``exp(-age / AGE)``.
        energy: [N] float32, sum over heads of the square of each head's mean over
            :data:`RECENT` queries.
    """

    recent: Tensor
    question: Tensor
    energy: Tensor

    @classmethod
    def of(cls, weights: Tensor) -> QueryAttention:
        """Reduce causal softmax weights.

        Args:
            weights: [H, W, N], rows in prompt order, the last one that of the last token.

        Raises:
            ValueError: the weights are not [H, W, N] with H, W >= 1.
        """
        if weights.ndim != 3 or 0 in weights.shape:
            raise ValueError(f"attention must be [H, W, N], not {list(weights.shape)}")
        recent = weights[:, -RECENT:].float().mean(1)
        question = weights.amax(0).float() * _say(weights.shape[1], weights.device)
        return cls(recent.amax(0), question.amax(0), recent.square().sum(0))

    @classmethod
    def joined(cls, parts: Sequence[QueryAttention]) -> QueryAttention:
        """The same over the heads of all parts (layers, or ranks of a tensor-parallel group)."""
        if len(parts) == 1:
            return parts[0]
        recent, question, energy = (
            torch.stack([getattr(part, name) for part in parts])
            for name in ("recent", "question", "energy")
        )
        return cls(recent.amax(0), question.amax(0), energy.sum(0))


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
    spread = reach(views, _column(FORWARD, views.device), BACKWARD)
    return shared_rank(list(zip(spread, (PASSAGE, SENTENCE, PHRASE), strict=True)))


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
def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Constants [n, 1] float64, copied to a device once, as each copy waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float64, device=device)[:, None]


@lru_cache
def _say(window: int, device: torch.device) -> Tensor:
    """``exp(-age / AGE)`` of the last queries: [W, 1] float32, made once for a device."""
    with torch.inference_mode(False):
        age = torch.arange(window - 1, -1, -1, device=device)
        return torch.exp(-age.float() / AGE)[:, None]


SCORE = Score(
    "query",
    needs=frozenset({"attention"}),
    options=frozenset({"window_layers", "protect_first", "protect_last"}),
    score=score,
)
