"""Ways to bring a vector of scores to [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NOISE = 1e-6
"""Span of a vector, as a share of its largest magnitude, up to which it counts as constant."""


def absolute(entropies: Tensor, num_tokens: int) -> Tensor:
    """Entropy as a share of the largest possible, ``H / log N``.

    Means the same for every prompt, as a threshold such as the paper's alpha needs.

    Args:
        entropies: [N], in nats.
        num_tokens: N >= 1.

    Returns:
        [N] float32 in [0, 1]; zeros for N = 1.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens={num_tokens} must be at least 1")
    if num_tokens == 1:
        return torch.zeros_like(entropies, dtype=torch.float32)
    return (entropies.float() / math.log(num_tokens)).clamp(0, 1)


def min_max(values: Tensor) -> Tensor:
    """Min-max scaling of one vector, the paper's ``Normalize`` in its relative reading.

    Args:
        values: [N], N >= 1, finite.

    Returns:
        [N] float32 in [0, 1]; 0.5 everywhere (no preference, as in :func:`average_rank`) where
        all values are equal within :data:`NOISE`, so that rounding is not blown up to scores.
    """
    values = values.float()
    low, high = values.aminmax()
    span = high - low
    differ = span > NOISE * torch.maximum(low.abs(), high.abs())
    return torch.where(differ, (values - low) / span.where(differ, 1.0), 0.5)


def average_rank(values: Tensor) -> Tensor:
    """Rank of each value, scaled to [0, 1]; equal values share their average rank.

    Args:
        values: [N], N >= 1, finite.

    Returns:
        [N] float32: 0 for a lone smallest value, 1 for a lone largest, 0.5 where all are
        equal, 1.0 for N = 1.
    """
    count = values.shape[0]
    if count == 1:
        return torch.ones(1, dtype=torch.float32, device=values.device)
    ordered, order = torch.sort(values, stable=True)
    _, inverse, sizes = torch.unique_consecutive(
        ordered, return_inverse=True, return_counts=True
    )
    middle = (torch.cumsum(sizes, 0) - sizes).double() + (sizes - 1).double() / 2
    ranks = torch.empty(count, dtype=torch.float32, device=values.device)
    ranks[order] = (middle[inverse] / (count - 1)).float()
    return ranks
