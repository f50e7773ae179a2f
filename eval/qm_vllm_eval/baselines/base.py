"""Methods of the paper's Table 1: from a frozen encoder's states to what a decoder reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Source:
    """B sequences as the frozen encoder left them; N is the same for all.

    Attributes:
        states: [B, N, D] float32, what leaves the encoder's last layer.
        saliency: [B, N] in [0, 1], mean over layers of ``1 - minmax(H)`` (paper 3.2, low entropy
            is salient).
        absolute: [B, N], mean over layers of ``1 - H / log N``: a threshold on it means the same
            for every sequence.
        raw: uint8 [B, U], what the encoder's input was made of (UTF-8 bytes of a text, grey levels
            of pixels row by row), padded with 0 on the right.
        raw_lengths: int64 [B], the bytes of each.
    """

    states: Tensor
    saliency: Tensor
    absolute: Tensor
    raw: Tensor
    raw_lengths: Tensor


@dataclass(frozen=True, eq=False)
class Tokens:
    """What the decoder reads in place of N states.

    Attributes:
        states: [B, K_max, W], padded with 0 on the right.
        lengths: int64 [B], the K of each, 1 <= K <= K_max.
        loss: scalar, what the method itself wants minimised beside the task; 0 if nothing.
    """

    states: Tensor
    lengths: Tensor
    loss: Tensor


@dataclass(frozen=True, eq=False)
class Noise:
    """Randomness of a training step; inference has none.

    Attributes:
        generator: on the device of the states. temperature: of the Gumbel relaxation, > 0.
    """

    generator: torch.Generator
    temperature: float


class Method(nn.Module):
    """A row of Table 1 or 2. ``forward`` is deterministic without noise.

    Attributes:
        name: as the tables print it.
        width: W of the tokens.
        aligned: whether the decoder is also trained to predict the tokens themselves (L_AR of
            paper 3.4), which is a part of QuickMerge++.
    """

    name: str
    width: int
    aligned: bool = False

    def forward(self, source: Source, noise: Noise | None = None) -> Tokens:
        """Tokens of a batch; with noise as in training."""
        raise NotImplementedError
