"""What a compression lost, measured (paper 3.5).

The paper's bound ``||X - X_pad||^2 <= (1 - gamma)^2 ||X||^2`` does not hold in general: with
equal norms and zero padding the error is ``(1 - gamma) ||X||^2``, which is larger. So gamma is
reported as a statistic, and the error is measured.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 2048
"""Most rows that are compared at once."""
AT_ONCE = 8 << 20
"""Bytes of rows in float64 held at once: of wide states fewer rows are compared."""


def measures(
    states: Tensor, merged: Tensor, groups: Tensor, norms: Tensor, kept: Tensor
) -> Tensor:
    """:func:`gamma`, :func:`retained_norm` and :func:`reconstruction_error` of one prompt.

    Args:
        states: [N, D]. merged: [K, D]. groups: int64 [N]. norms: [N]. kept: int64 [K].

    Returns:
        [3] float64 on the device of the states: nothing waits for it.
    """
    return torch.stack((
        _gamma(norms, kept.shape[0]), _share(norms.double()[kept], norms),
        _error(states, merged, groups),
    ))


def gamma(norms: Tensor, k: int) -> float:
    """The paper's gamma: share of the norm mass in the k largest norms.

    Args:
        norms: [N] L2 norms.
        k: 0 <= k <= N.

    Returns:
        In [0, 1]; 1.0 where all norms are 0.
    """
    return float(_gamma(norms, k))


def retained_norm(norms: Tensor, kept: Tensor) -> float:
    """Share of the norm mass at the positions really kept; at most :func:`gamma`.

    Args:
        norms: [N] L2 norms.
        kept: int64 [K].

    Returns:
        In [0, 1]; 1.0 where all norms are 0.
    """
    return float(_share(norms.double()[kept], norms))


def reconstruction_error(states: Tensor, merged: Tensor, groups: Tensor) -> float:
    """Relative Frobenius error ``||X - X_pad|| / ||X||`` with ``X_pad[i] = merged[groups[i]]``.

    Args:
        states: [N, D].
        merged: [K, D].
        groups: int64 [N].

    Returns:
        >= 0; 0.0 where the states are all 0 and reconstructed so.
    """
    return float(_error(states, merged, groups))


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
    return float(_relative(_energy(states[dropped].float()), _energy(states.float())))


def rows_at_once(width: int) -> int:
    """Rows [*, D] that are compared at once."""
    return max(1, min(ROWS, AT_ONCE // (8 * width)))


def _gamma(norms: Tensor, k: int) -> Tensor:
    if not 0 <= k <= norms.shape[0]:
        raise ValueError(f"k={k} must be between 0 and the {norms.shape[0]} tokens")
    return _share(norms.double().topk(k).values, norms)


def _error(states: Tensor, merged: Tensor, groups: Tensor) -> Tensor:
    if states.shape[0] != groups.shape[0]:
        raise ValueError(f"groups must be [{states.shape[0]}], not {list(groups.shape)}")
    error = energy = torch.zeros((), dtype=torch.float64, device=states.device)
    size = rows_at_once(states.shape[1])
    for start in range(0, states.shape[0], size):
        rows = states[start : start + size].float()
        energy = energy + _energy(rows)
        error = error + _energy(merged[groups[start : start + size]].float().sub_(rows))
    return _relative(error, energy)


def _share(part: Tensor, norms: Tensor) -> Tensor:
    total = norms.double().sum()
    return torch.where(total > 0, (part.sum() / total).clamp_max(1), 1.0)


def _energy(rows: Tensor) -> Tensor:
    energy: Tensor = torch.linalg.vector_norm(rows, dtype=torch.float64).square()
    return energy


def _relative(error: Tensor, energy: Tensor) -> Tensor:
    """sqrt(error / energy); 0 where both are 0."""
    return torch.where(error == 0, 0.0, (error / energy).sqrt())
