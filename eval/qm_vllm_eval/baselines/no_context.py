"""What the decoder knows without the input: a control."""

from __future__ import annotations

import torch

from qm_vllm_eval.baselines.base import Method, Noise, Source, Tokens


class NoContext(Method):
    """One zero state for every sequence.

    Args:
        width: W.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.name, self.width = "no context", width

    def forward(self, source: Source, noise: Noise | None = None) -> Tokens:
        """[B, 1, W] of zeros, lengths 1."""
        batch, device = source.states.shape[0], source.states.device
        states = source.states.new_zeros(batch, 1, self.width)
        lengths = torch.ones(batch, dtype=torch.int64, device=device)
        return Tokens(states, lengths, states.new_zeros(()))
