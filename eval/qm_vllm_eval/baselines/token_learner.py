"""Learned attention maps over all tokens: the "TokenLearner" row of Table 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qm_vllm_eval.baselines.base import Method, Noise, Source, Tokens


class TokenLearner(Method):
    """TokenLearner v1.1 (Ryoo et al., 2021, arXiv 2106.11297).

    An MLP on the normed states scores every token for each of K outputs; a softmax over the N
    tokens makes K attention maps, and each output is the sum of the states under one map. K is
    fixed. The outputs come in the order of their index: they have no causal order, and none is
    added. No dropout; the last layer has no bias, which the softmax over tokens would cancel.

    Args:
        width: D, which is also W.
        num_tokens: K.
        hidden: of the MLP (64 in the authors' v1.1).
    """

    def __init__(self, width: int, num_tokens: int, hidden: int = 64) -> None:
        super().__init__()
        self.name, self.width = "TokenLearner", width
        self.score = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, num_tokens, bias=False),
        )

    def weights(self, states: Tensor) -> Tensor:
        """Attention maps of states [B, N, D]: [B, K, N], each summing to 1 over N."""
        return self.score(states).transpose(1, 2).softmax(-1)

    def forward(self, source: Source, noise: Noise | None = None) -> Tokens:
        """[B, K, D], all lengths K."""
        states = self.weights(source.states) @ source.states
        batch, count, _ = states.shape
        lengths = torch.full((batch,), count, device=states.device)
        return Tokens(states, lengths, states.new_zeros(()))
