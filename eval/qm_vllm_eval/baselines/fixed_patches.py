"""Consecutive groups of tokens, mean-pooled: the "Fixed Patches" row of Table 1."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from qm_vllm_eval.baselines.base import Method, Noise, Source, Tokens

_ROUNDING = 1e-9
"""Products of a float size this close below a whole number are that number."""


class FixedPatches(Method):
    """Group k holds the tokens ``floor(k size) .. floor((k+1) size) - 1``; K = ceil(N / size).

    Size 1 is all N states, the paper's row (1.00x). Nothing is learned.

    Args:
        width: D, which is also W.
        size: tokens of a group, >= 1; need not be whole.
    """

    def __init__(self, width: int, size: float = 1.0) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size={size} must be at least 1")
        self.name, self.width, self.size = "Fixed Patches", width, size

    def forward(self, source: Source, noise: Noise | None = None) -> Tokens:
        """[B, ceil(N / size), D], all lengths alike."""
        states = source.states
        batch, count, _ = states.shape
        if self.size > 1:
            member = membership(count, self.size).to(states)
            states = member @ states / member.sum(1, keepdim=True)
        lengths = torch.full((batch,), states.shape[1], device=states.device)
        return Tokens(states, lengths, states.new_zeros(()))


@lru_cache(maxsize=64)
def starts(count: int, size: float) -> Tensor:
    """First position of each group of ``size`` of ``count`` positions: int64 [K] on the CPU."""
    firsts = torch.arange(count, dtype=torch.float64) * size + _ROUNDING
    firsts = firsts.floor().long()
    return firsts[firsts < count]


@lru_cache(maxsize=64)
def membership(count: int, size: float) -> Tensor:
    """1 where a position is in a group, else 0: float32 [K, count] on the CPU."""
    firsts = starts(count, size)
    groups = torch.searchsorted(firsts, torch.arange(count), right=True) - 1
    return (groups == torch.arange(firsts.shape[0])[:, None]).float()
