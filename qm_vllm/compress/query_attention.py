"""What the end of a prompt looks at, reduced over heads to three numbers per token.

Gathered for the score ``query``, whose other constants stand in ``saliency/query.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

RECENT = 8
"""Last positions that say what is being continued."""
AGE = 24.0
"""Tokens after which a query's say falls to 1/e: questions stand at the end of a prompt."""


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
        question = weights.amax(0).float() * say(weights.shape[1], weights.device)
        return cls(recent.amax(0), question.amax(0), recent.square().sum(0))

    def of_rows(self, rows: slice) -> QueryAttention:
        """Of some tokens alone: a hint behind a prompt looks at it and is no part of it."""
        return QueryAttention(self.recent[rows], self.question[rows], self.energy[rows])

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


@lru_cache
def say(window: int, device: torch.device) -> Tensor:
    """What each of the last queries counts, ``exp(-age / AGE)``: [W, 1] float32.

    Made once for a device.
    """
    with torch.inference_mode(False):
        age = torch.arange(window - 1, -1, -1, device=device)
        return torch.exp(-age.float() / AGE)[:, None]
