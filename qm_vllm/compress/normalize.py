"""Ways to bring a vector of scores to [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
        values: [N], N >= 1.

    Returns:
        [N] float32 in [0, 1]; 0.5 everywhere (no preference, as in :func:`average_rank`) where
        all values are equal within :data:`NOISE`, so that rounding is not blown up to scores.
        NaN somewhere where a value is NaN or infinite, so that it is seen.
    """
    values = values.float()
    low, high = values.aminmax()
    span = high - low
    equal = (span <= NOISE * torch.maximum(low.abs(), high.abs())) & span.isfinite()
    differ = ~equal
    return torch.where(differ, (values - low) / span.where(differ, 1.0), 0.5)


def average_rank(values: Tensor) -> Tensor:
    """Rank of each value, scaled to [0, 1]; equal values share their average rank.

    Args:
        values: [..., N], N >= 1; each row is ranked by itself.

    Returns:
        [..., N] float32: 0 for a lone smallest value, 1 for a lone largest, 0.5 where all are
        equal, 1.0 for N = 1. NaN where the value is NaN or infinite, so that it is seen.
    """
    count = values.shape[-1]
    if count == 1:
        return torch.ones_like(values, dtype=torch.float32)
    values = values.contiguous()
    ordered = torch.sort(values).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    ranks = ((below + up_to - 1).double() / 2 / (count - 1)).float()
    return ranks.where(values.isfinite(), torch.nan)


def shared_rank(parts: Sequence[tuple[Tensor, float]]) -> Tensor:
    """One score from several, each of which fills its share of any budget with its best tokens.

    A token's place is the best it has in any part: its rank there, from 0, over the part's
    share. Cutting the result anywhere leaves each part about its share, whatever the cut.

    Args:
        parts: scores [N] (higher = better, finite) and their shares, > 0.

    Returns:
        [N] float32 in [0, 1], an average rank.
    """
    scores = torch.stack([values for values, _ in parts])
    places = (1 - average_rank(scores).double()) * (scores.shape[1] - 1)
    for place, (_, share) in zip(places, parts, strict=True):
        place /= share
    # Places of different parts can be equal but for rounding: 2 / 0.2 and 5 / 0.5.
    return average_rank(-torch.round(places.amin(0), decimals=3))
