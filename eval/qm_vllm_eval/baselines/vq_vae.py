"""Discrete codes learned by reconstruction: the "VQ-VAE" row of Table 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qm_vllm_eval.baselines.base import Method, Noise, Source, Tokens


class VqVae(Method):
    """VQ-VAE over the sequence of states (van den Oord et al., 2017, arXiv 1711.00937).

    Convolutional encoder, nearest code, straight-through gradient, convolutional decoder that
    reconstructs the states standardised per channel. The convolutions are centred, not causal:
    the states they read come from a bidirectional encoder. The loss, given in training only
    (with noise), is the mean squared error of the reconstruction plus ``commitment`` times
    that of the encoder's output from its code.

    The tokens are the codes' vectors, runs of equal adjacent codes collapsed to one: that is
    how the rate adapts. How long a run was is not told.

    In training mode with noise, after the codes are chosen, the codebook and the statistics of
    the channels are updated; otherwise nothing is.

    Args:
        width: D of the states.
        num_codes: of the codebook.
        code_width: W.
        stride: states per code.
        hidden: channels of the convolutions.
        commitment: weight of the commitment loss (the paper's beta).
    """

    mean: Tensor
    variance: Tensor
    steps: Tensor

    def __init__(
        self, width: int, num_codes: int = 512, code_width: int = 64, stride: int = 1,
        hidden: int = 256, commitment: float = 0.25,
    ) -> None:
        super().__init__()
        self.name, self.width = "VQ-VAE", code_width
        self.stride, self.commitment = stride, commitment
        self.encoder = nn.Sequential(
            nn.Conv1d(width, hidden, 3, stride, 1),
            nn.GELU(),
            nn.Conv1d(hidden, hidden, 3, 1, 1),
            nn.GELU(),
            nn.Conv1d(hidden, code_width, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv1d(code_width, hidden, 3, 1, 1),
            nn.GELU(),
            nn.Conv1d(hidden, hidden, 3, 1, 1),
            nn.GELU(),
            nn.Conv1d(hidden, width, 1),
        )
        self.codebook = Codebook(num_codes, code_width)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("steps", torch.zeros(()))

    def perplexity(self) -> Tensor:
        """Codes in use in training lately, as the exponential of their entropy: scalar."""
        return self.codebook.perplexity()

    def encode(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """States [B, N, D] standardised, and the encoder's output [B, ceil(N / stride), W]."""
        target = (states - self.mean) / (self.variance + 1e-5).sqrt()
        return target, self.encoder(target.transpose(1, 2)).transpose(1, 2).float()

    def decode(self, vectors: Tensor, count: int) -> Tensor:
        """Reconstruction [B, N, D] of standardised states from vectors [B, T, W]."""
        spread = vectors.transpose(1, 2).repeat_interleave(self.stride, dim=2)[..., :count]
        return self.decoder(spread).transpose(1, 2)

    def forward(self, source: Source, noise: Noise | None = None) -> Tokens:
        """[B, T_max, W], one token a run of equal codes."""
        states = source.states
        learning = noise if self.training else None
        if learning is not None:
            self._observe(states)
        target, encoded = self.encode(states)
        if learning is not None:
            self.codebook.begin(encoded.detach(), learning.generator)
        codes = self.codebook.nearest(encoded)
        vectors = self.codebook.vectors[codes]
        through = encoded + (vectors - encoded).detach()
        loss = states.new_zeros(())
        if noise is not None:
            rebuilt = self.decode(through, states.shape[1])
            loss = F.mse_loss(rebuilt, target) + self.commitment * F.mse_loss(encoded, vectors)
        if learning is not None:
            self.codebook.update(encoded.detach(), codes, learning.generator)
        tokens, lengths = collapse(through, codes)
        return Tokens(tokens, lengths, loss)

    @torch.no_grad()
    def _observe(self, states: Tensor) -> None:
        """Mean and variance per channel: of all batches at first, then of the last hundred."""
        self.steps += 1
        share = (1 / self.steps).clamp_min(0.01)
        rows = states.flatten(0, 1)
        shift = rows.mean(0) - self.mean
        spread = rows.var(0, correction=0) + (1 - share) * shift.square()
        self.variance.lerp_(spread, share)
        self.mean.add_(share * shift)


class Codebook(nn.Module):
    """Codes that follow the vectors nearest to them (van den Oord et al., 2017, appendix A.1).

    Moving averages of how often a code is chosen and of the sum of what chose it, counts
    smoothed after Laplace. It starts as vectors of the first batch; a code that is hardly chosen
    is put on a random vector of the current batch (as in Jukebox, Dhariwal et al., 2020).

    Args:
        num_codes: C.
        width: w.
        decay: of the averages.
        smoothing: added to each count.
        restart_below: a code dies under this share of the mean count.
    """

    vectors: Tensor
    sums: Tensor
    counts: Tensor
    begun: Tensor

    def __init__(
        self, num_codes: int, width: int, decay: float = 0.99, smoothing: float = 1e-5,
        restart_below: float = 0.1,
    ) -> None:
        super().__init__()
        self.decay, self.smoothing, self.restart_below = decay, smoothing, restart_below
        vectors = torch.randn(num_codes, width)
        self.register_buffer("vectors", vectors)
        self.register_buffer("sums", vectors.clone())
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Index of the code nearest to each of [..., w]: int64 [...]."""
        flat = vectors.flatten(0, -2)
        apart = self.vectors.square().sum(1) - 2 * flat @ self.vectors.T
        return apart.argmin(1).view(vectors.shape[:-1])

    @torch.no_grad()
    def begin(self, vectors: Tensor, generator: torch.Generator) -> None:
        """At the first call put every code on a random one of vectors [..., w]."""
        drawn = self._draw(vectors, generator)
        self.vectors.copy_(torch.where(self.begun, self.vectors, drawn))
        self.sums.copy_(torch.where(self.begun, self.sums, drawn))
        self.begun.fill_(True)

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor, generator: torch.Generator) -> None:
        """Learn from vectors [..., w] that chose codes [...]."""
        flat = vectors.flatten(0, -2)
        chosen = F.one_hot(codes.flatten(), self.counts.shape[0]).to(flat.dtype)
        self.counts.lerp_(chosen.sum(0), 1 - self.decay)
        self.sums.lerp_(chosen.T @ flat, 1 - self.decay)
        total, mean = self.counts.sum(), self.counts.mean()
        smoothed = (self.counts + self.smoothing) * (
            total / (total + self.counts.shape[0] * self.smoothing)
        )
        self.vectors.copy_(self.sums / smoothed[:, None])
        dead = self.counts < self.restart_below * mean
        drawn = self._draw(flat, generator)
        self.counts.copy_(torch.where(dead, mean, self.counts))
        self.vectors.copy_(torch.where(dead[:, None], drawn, self.vectors))
        self.sums.copy_(torch.where(dead[:, None], drawn * mean, self.sums))

    def perplexity(self) -> Tensor:
        """Exponential of the entropy of the choices: scalar in [1, C]."""
        shares = self.counts / self.counts.sum()
        return torch.special.entr(shares).sum().exp()

    def _draw(self, vectors: Tensor, generator: torch.Generator) -> Tensor:
        flat = vectors.flatten(0, -2)
        size = (self.counts.shape[0],)
        rows = torch.randint(flat.shape[0], size, generator=generator, device=flat.device)
        return flat[rows]


def collapse(vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The first vector of each run of equal adjacent codes.

    Args:
        vectors: [B, T, w].
        codes: int64 [B, T].

    Returns:
        [B, R_max, w] padded with 0, and int64 [B], the number of runs.
    """
    starts = torch.ones_like(codes, dtype=torch.bool)
    starts[:, 1:] = codes[:, 1:] != codes[:, :-1]
    lengths = starts.sum(1)
    longest = int(lengths.max())
    places = torch.sort((~starts).to(torch.uint8), dim=1, stable=True).indices[:, :longest]
    runs = vectors.gather(1, places[..., None].expand(-1, -1, vectors.shape[2]))
    inside = torch.arange(longest, device=codes.device) < lengths[:, None]
    return runs * inside[..., None], lengths
