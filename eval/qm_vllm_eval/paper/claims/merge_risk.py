"""Appendix C: ``P[x_i contributes significantly] <= exp(-NED_i^2 / (2 sigma_i^2))``.

The paper does not define "contributes significantly". Here: token i does if the outputs of the
other tokens change by more than a threshold when i is dropped. ``c_i`` is the root mean square
over the other tokens j of ``|Y_j - Y_j^(-i)| / |Y_j|``: relative in each row, because a few rows
of real states have norms hundreds of times the others'. Y is eq. 1's own output A X
(:func:`contribution`), or the real next layer of a model (:func:`leave_one_out`).
``sigma_i^2 = Var(A_.i)`` as in the paper. Tokens are put into bins by their bound; in a bin the
share of significant tokens may not be above the mean bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from qm_vllm_eval.paper.claims.attention import COSINE, Attention, attention, spearman

EDGES = (0.0, 1e-6, 0.01, 0.1, 0.5, 0.9, 1.0)
"""Edges of the bins of the bound."""
THRESHOLDS = (0.001, 0.01, 0.05)
"""Relative changes from which on a contribution counts as significant."""
_ERRORS = 2.0  # standard errors of a share before it counts as above the bound


@dataclass(frozen=True)
class RiskBin:
    """Tokens whose bound lies in one bin: how many, their mean bound, the significant share."""

    tokens: int
    bound: float
    share: float
    above: bool


@dataclass(frozen=True)
class RiskFigures:
    """The bound against what dropping a token does.

    Attributes:
        threshold: relative change that counts as significant.
        tokens: how many tokens.
        significant: share of all tokens that are significant.
        mean_bound: mean of the bound over all tokens.
        vacuous: share of tokens whose bound is above 0.9.
        bins: by bound, empty ones left out.
        ned_spearman: correlation of NED with the contribution.
        bound_spearman: correlation of the bound with the contribution.
        first_bound, first_effect, other_effect: highest bound of the windows' first tokens (class
            token, attention sink), their mean contribution, and that of all other tokens.
        holds: no bin's share is above its mean bound by more than two standard errors.
    """

    threshold: float
    tokens: int
    significant: float
    mean_bound: float
    vacuous: float
    bins: list[RiskBin]
    ned_spearman: float
    bound_spearman: float
    first_bound: float
    first_effect: float
    other_effect: float
    holds: bool


def risk_bound(found: Attention) -> Tensor:
    """The right side of appendix C, [N]; 1 where NED and sigma are both 0."""
    spread = found.weights.var(0, unbiased=False)
    power = found.ned.square() / (2 * spread)
    return torch.exp(-power.nan_to_num(nan=0.0, posinf=math.inf))


def contribution(states: Tensor, scale: float | None = COSINE) -> Tensor:
    """c_i for Y = A X, [N] float64: row j without token i is again a softmax, over the others.

    Args:
        states: [N, D], N >= 2.
        scale: as in :func:`qm_vllm_eval.paper.claims.attention.attention`.
    """
    logs = attention(states, scale).logs
    rows = states.double()
    out = logs.exp() @ rows
    found = torch.empty(len(rows), dtype=torch.float64)
    others = torch.ones(len(rows), dtype=torch.bool)
    for token in range(len(rows)):
        others[token] = False
        without = logs[others][:, others].softmax(1) @ rows[others]
        found[token] = _change(without, out[others])
        others[token] = True
    return found


@torch.inference_mode()
def leave_one_out(
    layer: Callable[[Tensor, Tensor], Tensor], states: Tensor, batch: int = 32
) -> Tensor:
    """c_i for a model's own layer, [N] float64, by running it N times on N - 1 tokens.

    Args:
        layer: from states [B, n, D] and their positions int64 [B, n] to states [B, n, D'].
        states: [N, D] that enter it, N >= 2.
        batch: how many of the N runs go together.
    """
    count = states.shape[0]
    places = torch.arange(count)
    full = layer(states[None], places[None])[0].double()
    found = torch.empty(count, dtype=torch.float64)
    for start in range(0, count, batch):
        kept = torch.stack([
            places[places != token] for token in range(start, min(start + batch, count))
        ])
        without = layer(states[kept], kept).double()
        found[start : start + len(kept)] = _change(without, full[kept])
    return found


def check_risk(
    layers: Sequence[Tensor], contributions: Sequence[Tensor], threshold: float,
    scale: float | None = COSINE,
) -> RiskFigures:
    """Compare the bound with measured contributions.

    Args:
        layers: states [N, D], one tensor a layer.
        contributions: [N] of each.
        threshold: > 0.
    """
    bounds, drops = [], []
    for states in layers:
        found = attention(states, scale)
        bounds.append(risk_bound(found))
        drops.append(found.ned)
    bound, ned, change = torch.cat(bounds), torch.cat(drops), torch.cat(list(contributions))
    bins = _bins(bound, change > threshold)
    first = torch.cat([torch.arange(len(part)) == 0 for part in bounds])
    return RiskFigures(
        threshold=threshold,
        tokens=len(bound),
        significant=float((change > threshold).double().mean()),
        mean_bound=float(bound.mean()),
        vacuous=float((bound > 0.9).double().mean()),
        bins=bins,
        ned_spearman=spearman(ned, change),
        bound_spearman=spearman(bound, change),
        first_bound=float(bound[first].max()),
        first_effect=float(change[first].mean()),
        other_effect=float(change[~first].mean()),
        holds=not any(part.above for part in bins),
    )


def _change(without: Tensor, with_it: Tensor) -> Tensor:
    """Root mean square over rows of the relative change of each: [..., n, D] to [...]."""
    tiny = torch.finfo(with_it.dtype).tiny
    relative = (without - with_it).norm(dim=-1) / with_it.norm(dim=-1).clamp_min(tiny)
    return relative.square().mean(-1).sqrt()


def _bins(bound: Tensor, significant: Tensor) -> list[RiskBin]:
    found = []
    for low, high in pairwise(EDGES):
        inside = (bound >= low) & ((bound < high) | (high == EDGES[-1]))
        count = int(inside.sum())
        if not count:
            continue
        share, level = float(significant[inside].double().mean()), float(bound[inside].mean())
        error = _ERRORS * math.sqrt(max(share * (1 - share), level * (1 - level)) / count)
        found.append(RiskBin(count, level, share, share - error > level))
    return found


def sink(count: int, width: int = 16, size: float = 40.0) -> Tensor:
    """Counterexample for eq. 1 to the letter: an attention sink, token 0 of [count, width].

    All tokens look at token 0 alone, so sigma_0 is near 0 and H_in is log N; token 0 looks at
    itself, so H_out is 0. NED is 1, the bound is 0, and every output *is* token 0.
    """
    rows = torch.zeros(count, width, dtype=torch.float64)
    rows[:, 0] = 1.0
    rows[:, 1:] = 0.1 * torch.eye(count, width - 1, dtype=torch.float64)
    rows[0, 0] = size * math.sqrt(width)
    return rows
