"""Eq. 1-2 written out: the N x N attention, its entropies, NED, and correlations of figures.

The library never holds the matrix (:mod:`qm_vllm.compress.entropy`); claims about variances of
its rows and columns need it. Float64 throughout, for windows of some hundred tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from qm_vllm.compress import average_rank
from qm_vllm.compress.entropy import unit_rows
from qm_vllm.compress.saliency.ned import DELTA

LETTER = None
"""The scale that means eq. 1 to the letter: logits ``x_i . x_j / sqrt(D)`` of raw rows."""
COSINE = 24.0
"""The library's reading: rows normalised first, logits 24 cos(x_i, x_j)."""


class Attention(NamedTuple):
    """One attention matrix of eq. 1.

    Attributes:
        logs: [N, N] float64, log A, rows sum to one in exp.
        outgoing: [N], entropy of each row in nats (eq. 2).
        incoming: [N], entropy of each normalised column in nats (appendix A).
        ned: [N], ``(H_in - H_out) / (H_in + delta)``.
    """

    logs: Tensor
    outgoing: Tensor
    incoming: Tensor
    ned: Tensor

    @property
    def weights(self) -> Tensor:
        """A itself, [N, N] float64."""
        return self.logs.exp()


def attention(states: Tensor, scale: float | None = COSINE, delta: float = DELTA) -> Attention:
    """Eq. 1, eq. 2 and appendix A's NED of one layer's states.

    Args:
        states: [N, D], floating, N >= 1.
        scale: of the cosine; :data:`LETTER` (None) is eq. 1 to the letter.
        delta: the paper's delta > 0, in nats.

    Raises:
        ValueError: states are not [N, D] with N >= 1.
    """
    if states.ndim != 2 or states.shape[0] < 1:
        raise ValueError(f"states must be [N, D] with N >= 1, not {list(states.shape)}")
    rows = rows_seen(states, scale)
    gain = 1 / math.sqrt(rows.shape[1]) if scale is None else scale
    logs = (gain * rows @ rows.T).log_softmax(1)
    outgoing = _entropies(logs)
    incoming = _entropies(logs.T.log_softmax(1))
    return Attention(logs, outgoing, incoming, (incoming - outgoing) / (incoming + delta))


def rows_seen(states: Tensor, scale: float | None) -> Tensor:
    """What the logits are products of: the raw rows, or rows of norm 1; [N, D] float64."""
    return states.double() if scale is LETTER else unit_rows(states, torch.float64)[0]


def pearson(one: Tensor, two: Tensor) -> float:
    """Pearson correlation of two [n]; 0 where one of them is constant."""
    one, two = one.double() - one.double().mean(), two.double() - two.double().mean()
    size = float(one.norm() * two.norm())
    return float(one @ two) / size if size > 0 else 0.0


def spearman(one: Tensor, two: Tensor) -> float:
    """Correlation of average ranks of two [n]; 0 where one of them is constant."""
    return pearson(average_rank(one), average_rank(two))


def mean(values: list[float]) -> float:
    """Arithmetic mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def median(values: list[float]) -> float:
    """Median; NaN of nothing."""
    return float(torch.tensor(values, dtype=torch.float64).median()) if values else math.nan


def _entropies(logs: Tensor) -> Tensor:
    return -(logs.exp() * logs).sum(1).clamp_max(0)
