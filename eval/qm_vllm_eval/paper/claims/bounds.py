"""3.5 and appendix B: the reconstruction error and its two bounds.

What holds, with K tokens kept that have the largest norms and the others padded with zeros:
``|X - X_pad|_F^2 <= (1 - gamma) |X|_F^2`` (equal for equal norms), and
``|X - X_pad|_F^2 <= (1 - gamma)^2 (sum_i |x_i|)^2``, which is what the triangle inequality
gives: the paper has |X|_F in the place of the sum of norms. With groups that fill X_pad, gamma,
which does not know the groups, bounds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qm_vllm.compress import (
    attention_entropy,
    gamma,
    group_tokens,
    gumbel_softmax_mask,
    merge_states,
    min_max,
    reconstruction_error,
    row_norms,
    select,
    soft_merge,
    zero_padded_error,
)
from qm_vllm.config import QuickMergeConfig
from qm_vllm_eval.paper.claims.attention import COSINE, mean

MERGES = ("select", "weighted", "mean")
EPSILON = 1e-2
_ROUNDING = 1e-6


@dataclass(frozen=True)
class FirstLineFigures:
    """``|X - X_pad|_F^2`` over ``sum_j m_j |x_j - x~|^2``, mean over windows; <= 1 if it holds.

    Attributes:
        unit_masses: with m = 1.
        paper_masses, paper_masses_lowest: with ``m = M s + (1 - M) epsilon``, mean and lowest.
        holds_with_unit_masses, holds: for every window.
    """

    unit_masses: float
    paper_masses: float
    paper_masses_lowest: float
    holds_with_unit_masses: bool
    holds: bool


@dataclass(frozen=True)
class GammaFigures:
    """The bound with gamma at one N / K, over windows.

    Attributes:
        ratio: N / K.
        gamma: mean.
        squared_bound: mean of (1 - gamma)^2.
        first_power: mean of 1 - gamma.
        zero_padded: mean of the squared relative error, largest norms kept, others zero.
        filled: the same for each merge, K by entropy, groups filled.
        violated: share of windows where zero padding is above (1 - gamma)^2.
        violated_filled: that share for each merge.
        first_power_holds, triangle_holds: the two bounds of the module text, every window.
        holds: the paper's bound, every window, for zero padding and all merges.
    """

    ratio: float
    gamma: float
    squared_bound: float
    first_power: float
    zero_padded: float
    filled: dict[str, float]
    violated: float
    violated_filled: dict[str, float]
    first_power_holds: bool
    triangle_holds: bool
    holds: bool


def first_line(states: Tensor, merged: Tensor, groups: Tensor, masses: Tensor) -> float:
    """Left over right side of appendix B's first line; above 1 the claim fails.

    Args:
        states: [N, D].
        merged: [K, D].
        groups: int64 [N].
        masses: [N], m_j >= 0.

    Returns:
        1.0 where both sides are 0.
    """
    errors = (states.double() - merged.double()[groups]).square().sum(1)
    left, right = float(errors.sum()), float(masses.double() @ errors)
    if left == 0:
        return 1.0
    return left / right if right > 0 else math.inf


def check_first_line(
    windows: Sequence[Tensor], *, ratio: float = 2.4, seed: int = 0
) -> FirstLineFigures:
    """Measure on states [N, D] with the paper's masses: eq. 2's saliency, Gumbel mask, epsilon."""
    plain, paper = [], []
    generator = torch.Generator().manual_seed(seed)
    for states in windows:
        states = states.double()
        scores = 1 - min_max(attention_entropy(states, COSINE)).double()
        count = math.ceil(len(states) / ratio)
        mask = gumbel_softmax_mask(scores, count, 0.1, generator)
        kept = mask.sort(descending=True, stable=True).indices[:count].sort().values
        groups = group_tokens(states, kept, QuickMergeConfig())
        merged = soft_merge(states, mask, scores, groups, count, EPSILON)
        plain.append(first_line(states, merged, groups, torch.ones_like(scores)))
        paper.append(
            first_line(states, merged, groups, mask * scores + (1 - mask) * EPSILON)
        )
    limit = 1 + _ROUNDING
    return FirstLineFigures(
        unit_masses=mean(plain),
        paper_masses=mean(paper),
        paper_masses_lowest=min(paper),
        holds_with_unit_masses=max(plain) <= limit,
        holds=max(paper) <= limit,
    )


def check_gamma(windows: Sequence[Tensor], ratio: float) -> GammaFigures:
    """Measure the (1 - gamma)^2 bound on states [N, D] at N / K = ratio."""
    shares, zeros, triangles = [], [], []
    filled: dict[str, list[float]] = {name: [] for name in MERGES}
    for states in windows:
        states = states.double()
        norms, count = row_norms(states), math.ceil(len(states) / ratio)
        nobody = torch.zeros(len(states), dtype=torch.bool)
        shares.append(gamma(norms, count))
        zeros.append(zero_padded_error(states, select(norms, count, nobody)) ** 2)
        triangles.append(float(norms.double().sum()) ** 2 / float(states.norm()) ** 2)
        scores = 1 - min_max(attention_entropy(states, COSINE))
        kept = select(scores, count, nobody)
        for name in MERGES:
            config = QuickMergeConfig(merge=name)
            groups = group_tokens(states, kept, config)
            merged = merge_states(states, kept, groups, scores, config)
            filled[name].append(reconstruction_error(states, merged, groups) ** 2)
    squared = [(1 - share) ** 2 for share in shares]
    above = {name: _above(errors, squared) for name, errors in filled.items()}
    return GammaFigures(
        ratio=ratio,
        gamma=mean(shares),
        squared_bound=mean(squared),
        first_power=mean([1 - share for share in shares]),
        zero_padded=mean(zeros),
        filled={name: mean(errors) for name, errors in filled.items()},
        violated=_above(zeros, squared),
        violated_filled=above,
        first_power_holds=_above(zeros, [1 - share for share in shares]) == 0,
        triangle_holds=_above(
            zeros, [b * t for b, t in zip(squared, triangles, strict=True)]
        ) == 0,
        holds=_above(zeros, squared) == 0 and not any(above.values()),
    )


def _above(errors: Sequence[float], bounds: Sequence[float]) -> float:
    """Share of windows whose error is above its bound by more than rounding."""
    return mean([
        float(error > bound * (1 + _ROUNDING) + 1e-9)
        for error, bound in zip(errors, bounds, strict=True)
    ])
