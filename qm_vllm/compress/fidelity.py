"""What a compression lost, measured (paper 3.5).

The paper's bound ``||X - X_pad||^2 <= (1 - gamma)^2 ||X||^2`` does not hold in general: with
equal norms and zero padding the error is ``(1 - gamma) ||X||^2``, which is larger. So gamma is
reported as a statistic, and the error is measured.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CHUNK = 2048


def gamma(norms: Tensor, k: int) -> float:
    """The paper's gamma: share of the norm mass in the k largest norms.

    Args:
        norms: [N] L2 norms.
        k: 0 <= k <= N.

    Returns:
        In [0, 1]; 1.0 where all norms are 0.
    """
    if not 0 <= k <= norms.shape[0]:
        raise ValueError(f"k={k} must be between 0 and the {norms.shape[0]} tokens")
    return _share(norms.double().topk(k).values, norms)


def retained_norm(norms: Tensor, kept: Tensor) -> float:
    """Share of the norm mass at the positions really kept; at most :func:`gamma`.

    Args:
        norms: [N] L2 norms.
        kept: int64 [K].

    Returns:
        In [0, 1]; 1.0 where all norms are 0.
    """
    return _share(norms.double()[kept], norms)


def reconstruction_error(states: Tensor, merged: Tensor, groups: Tensor) -> float:
    """Relative Frobenius error ``||X - X_pad|| / ||X||`` with ``X_pad[i] = merged[groups[i]]``.

    Args:
        states: [N, D].
        merged: [K, D].
        groups: int64 [N].

    Returns:
        >= 0; 0.0 where the states are all 0 and reconstructed so.
    """
    if states.shape[0] != groups.shape[0]:
        raise ValueError(f"groups must be [{states.shape[0]}], not {list(groups.shape)}")
    error = energy = 0.0
    for start in range(0, states.shape[0], _CHUNK):
        rows = states[start : start + _CHUNK].float()
        padded = merged[groups[start : start + _CHUNK]].float()
        error += _energy(rows - padded)
        energy += _energy(rows)
    return _relative(error, energy)


def zero_padded_error(states: Tensor, kept: Tensor) -> float:
    """Relative Frobenius error where dropped tokens are padded with zeros.

    Args:
        states: [N, D].
        kept: int64 [K].

    Returns:
        In [0, 1].
    """
    dropped = torch.ones(states.shape[0], dtype=torch.bool, device=states.device)
    dropped[kept] = False
    return _relative(_energy(states[dropped].float()), _energy(states.float()))


def _share(part: Tensor, norms: Tensor) -> float:
    total = float(norms.double().sum())
    return min(1.0, float(part.sum()) / total) if total > 0 else 1.0


def _energy(rows: Tensor) -> float:
    return float(torch.linalg.vector_norm(rows, dtype=torch.float64)) ** 2


def _relative(error: float, energy: float) -> float:
    if energy > 0:
        return math.sqrt(error / energy)
    return 0.0 if error == 0 else math.inf
