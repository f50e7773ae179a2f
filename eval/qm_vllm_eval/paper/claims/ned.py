"""Appendix A: NED and its monotonicity lemma."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qm_vllm_eval.paper.claims.attention import (
    COSINE,
    Attention,
    attention,
    mean,
    pearson,
    spearman,
)

PROPORTIONAL = 0.99
"""The correlation from which on two figures count as proportional here."""


@dataclass(frozen=True)
class LemmaFigures:
    """How NED follows the lemma's right side, over all layers of all windows.

    Attributes:
        layers: how many attention matrices.
        pearson, spearman: mean correlation of NED_i with ``Var(A_.i)/E[A_.i] - Var(A_i.)``.
        spearman_lowest, spearman_highest: the extremes.
        second_order_pearson, second_order_spearman: the same with :func:`second_order`.
        ned_lowest, ned_highest: extremes of NED over all tokens (1 is its upper limit).
        holds: every Pearson correlation with the lemma's right side is at least 0.99.
    """

    layers: int
    pearson: float
    spearman: float
    spearman_lowest: float
    spearman_highest: float
    second_order_pearson: float
    second_order_spearman: float
    ned_lowest: float
    ned_highest: float
    holds: bool


def lemma_side(found: Attention) -> Tensor:
    """The lemma's right side ``Var(A_.i) / E[A_.i] - Var(A_i.)``, [N].

    Var and E run over the N entries of column i and of row i, divided by N.
    """
    weights = found.weights
    incoming = weights.var(0, unbiased=False) / weights.mean(0)
    return incoming - weights.var(1, unbiased=False)


def second_order(found: Attention) -> Tensor:
    """What NED is near uniform attention, [N]: both terms with the sign opposite to the lemma's.

    A distribution p over N with variance v of its entries has ``H(p) = log N - N^2 v / 2`` to
    second order around 1/N. Column i divided by its sum N E[A_.i] is such a p. Hence
    ``NED_i = N^2 / (2 log N) (Var(A_i.) - Var(A_.i) / (N E[A_.i])^2)``.
    """
    weights = found.weights
    count = weights.shape[0]
    column = weights.var(0, unbiased=False) / (count * weights.mean(0)).square()
    row = weights.var(1, unbiased=False)
    return count**2 / (2 * math.log(count)) * (row - column)


def check_lemma(layers: Sequence[Tensor], scale: float | None = COSINE) -> LemmaFigures:
    """Measure the lemma on states [N, D], one tensor a layer, N >= 3."""
    linear, ranks, better, better_ranks, drops = [], [], [], [], []
    for states in layers:
        found = attention(states, scale)
        side, near = lemma_side(found), second_order(found)
        linear.append(pearson(found.ned, side))
        ranks.append(spearman(found.ned, side))
        better.append(pearson(found.ned, near))
        better_ranks.append(spearman(found.ned, near))
        drops += [float(found.ned.min()), float(found.ned.max())]
    return LemmaFigures(
        layers=len(linear),
        pearson=mean(linear),
        spearman=mean(ranks),
        spearman_lowest=min(ranks),
        spearman_highest=max(ranks),
        second_order_pearson=mean(better),
        second_order_spearman=mean(better_ranks),
        ned_lowest=min(drops),
        ned_highest=max(drops),
        holds=min(linear) >= PROPORTIONAL,
    )


def circle(count: int) -> Tensor:
    """Counterexample: ``count`` points evenly on a circle, [count, 2] float64.

    Isotropic to the last digit. A is symmetric and circulant, so column i is row i and NED_i = 0,
    while the lemma's right side is ``(N - 1) Var(A_i.) > 0``.
    """
    turn = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    return torch.stack((turn.cos(), turn.sin()), 1)


def isotropic(count: int, width: int, seed: int) -> Tensor:
    """Rows drawn from a standard normal, [count, width] float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, dtype=torch.float64, generator=generator)
