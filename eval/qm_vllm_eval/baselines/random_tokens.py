"""Anchors drawn at random, all else as in QuickMerge++: a control."""

from __future__ import annotations

import torch
from torch import Tensor

from qm_vllm_eval.baselines.base import Method, Noise, Source, Tokens
from qm_vllm_eval.baselines.quickmerge import QuickMerge, best, merge

_ODD = 0x5851F42D4C957F2D
"""An odd multiplier with well-mixed bits (Knuth's MMIX generator)."""


class RandomTokens(Method):
    """As many tokens of each sequence as QuickMerge++ keeps, but any; the last is kept too.

    In training they are drawn anew each time. Without noise they depend on nothing but the
    sequence's raw bytes, so that they are the same every time and on every device. No norm
    masking; the merge weighs anchors by their saliency as QuickMerge++ does.

    Args:
        width: D, which is also W.
        like: gives the budgets and epsilon.
        aligned: whether the decoder is trained to predict the tokens too (L_AR), as with
            QuickMerge++: then the choice of tokens is all that differs.
    """

    def __init__(self, width: int, like: QuickMerge, aligned: bool = False) -> None:
        super().__init__()
        self.name, self.width, self.like = f"random tokens at {like.factor:g}x", width, like
        self.aligned = aligned

    def anchors(self, source: Source, noise: Noise | None = None) -> Tensor:
        """Whether a token is kept: bool [B, N]."""
        score = torch.empty_like(source.saliency)
        if noise is not None:
            score.uniform_(generator=noise.generator)
        else:
            score = hashed(source.raw, source.raw_lengths, score.shape[1])
        score[:, -1] = 2
        return best(score, torch.zeros_like(score), self.like.budgets(source))

    def forward(self, source: Source, noise: Noise | None = None) -> Tokens:
        """[B, K_max, D] in the order of the anchors."""
        states, lengths = merge(source, self.anchors(source, noise), self.like.epsilon)
        return Tokens(states, lengths, states.new_zeros(()))


def hashed(raw: Tensor, lengths: Tensor, count: int) -> Tensor:
    """Numbers in [0, 1) that look random and depend on the bytes alone.

    Args:
        raw: uint8 [B, U], 0 beyond the lengths; how much of that there is does not matter.
        lengths: int64 [B].
        count: N.

    Returns:
        float32 [B, N].
    """
    places = _mix(torch.arange(1, raw.shape[1] + 1, device=raw.device))
    seeds = _mix((raw.long() * places).sum(1) + lengths)
    tokens = torch.arange(1, count + 1, device=raw.device) * _ODD
    return ((_mix(seeds[:, None] + tokens) >> 40) & 0xFFFFFF).float() / (1 << 24)


def _mix(values: Tensor) -> Tensor:
    """An int64 hash, in wrapping arithmetic."""
    for shift in (31, 29, 32):
        values = (values ^ ((values >> shift) & 0x7FFFFFFF)) * _ODD
    return values ^ ((values >> 30) & 0x7FFFFFFF)
