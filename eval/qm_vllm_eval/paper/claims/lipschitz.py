"""Appendix C, "Worst-Case Prediction Divergence Bound": holds by definition, for a given L.

What is left to measure is L. No global one exists for dot-product attention:
:func:`attention_slope` grows with the square of the states. On a real model's states there is an
empirical one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qm_vllm.compress import Compressed, compress
from qm_vllm.config import QuickMergeConfig
from qm_vllm_eval.paper.claims.attention import mean


@dataclass(frozen=True)
class LipschitzFigures:
    """Ratios ``|f(z~) - f(z)|_F / |z~ - z|_F`` of a model's map f on windows.

    Attributes:
        merged_mean, merged_highest: z~ is the merged states, every group filled in.
        noise_mean, noise_highest: z~ is z with noise of 1e-3 of its norm.
        pairs: how many ratios of both kinds.
        spread: highest over lowest ratio of the merged ones: 1 would be a linear law.
        holds: the highest of all ratios taken as L, no pair is above it: true by definition.
    """

    merged_mean: float
    merged_highest: float
    noise_mean: float
    noise_highest: float
    pairs: int
    spread: float
    holds: bool


@torch.inference_mode()
def check_lipschitz(
    f: Callable[[Tensor], Tensor], windows: Sequence[Tensor], *,
    ratios: Sequence[float] = (1.5, 2.4, 4.0), seed: int = 0,
) -> LipschitzFigures:
    """Measure on states z [N, D] that f maps to [N, D'].

    Args:
        ratios: the N / K of the merges.
    """
    generator = torch.Generator().manual_seed(seed)
    merged, noisy = [], []
    for states in windows:
        out = f(states)
        for ratio in ratios:
            config = QuickMergeConfig(ratio=1 / ratio, saliency="entropy", protect_last=1)
            found = compress(states, config)
            assert isinstance(found, Compressed)
            merged.append(_ratio(f, states, out, found.states[found.groups]))
        noise = torch.randn(states.shape, generator=generator).to(states)
        step = 1e-3 * states.norm() / noise.norm()
        noisy.append(_ratio(f, states, out, states + step * noise))
    return LipschitzFigures(
        merged_mean=mean(merged),
        merged_highest=max(merged),
        noise_mean=mean(noisy),
        noise_highest=max(noisy),
        pairs=len(merged) + len(noisy),
        spread=max(merged) / min(merged),
        holds=True,
    )


def attention_slope(size: float) -> float:
    """Derivative of a self-attention output with respect to its own input, three tokens, D = 1.

    ``x = (0, a, -a)``, output 0 is ``sum_j softmax(x_0 x)_j x_j``; its derivative in x_0 is the
    variance of x under the attention plus the token's own weight: ``2 a^2 / 3 + 1 / 3``.

    Args:
        size: a.
    """
    tokens = torch.tensor([0.0, size, -size], dtype=torch.float64, requires_grad=True)
    out = (tokens[0] * tokens).softmax(0) @ tokens
    (slope,) = torch.autograd.grad(out, tokens)
    return float(slope[0])


def _ratio(f: Callable[[Tensor], Tensor], states: Tensor, out: Tensor, other: Tensor) -> float:
    distance = float((other - states).double().norm())
    return float((f(other) - out).double().norm()) / distance if distance > 0 else math.nan
