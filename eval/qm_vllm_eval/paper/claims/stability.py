"""Appendix B, "Stability Across Layers": is NED Lipschitz in the states?

What holds. Let ``g`` bound the change of a logit: ``|dz_ij| <= g (|dx_i| + |dx_j|)``; g is the
logit scale for rows of norm 1, and R / sqrt(D) for raw rows of norm at most R. The gradient of
the entropy of softmax(z) is ``-p_k (log p_k + H)``, its 1-norm at most
``V = sqrt(log(N - 1)^2 / 4 + 1)`` (the largest deviation of log p over N outcomes). So

``|dH_out| <= sqrt(2) g V |dX|_F`` and ``|dH_in| <= 2 sqrt(2) g V |dX|_F``,

and with ``H_in >= h`` at both layers
``|dNED| <= sqrt(2) g V (1 / (h + delta) + 2 (log N + delta) / (h + delta)^2) |dX|_F``.
There is no constant without bounds on R (raw rows), on the row norms from below (normalised
rows) and on h: :func:`jump` is the counterexample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from qm_vllm.compress.saliency.ned import DELTA
from qm_vllm_eval.paper.claims.attention import (
    COSINE,
    attention,
    mean,
    median,
    rows_seen,
    spearman,
)


@dataclass(frozen=True)
class StabilityFigures:
    """NED between consecutive layers, over all pairs of layers of all windows.

    Attributes:
        pairs: how many pairs.
        ratio_median, ratio_highest: of ``max_i |NED_i^l - NED_i^{l+1}| / |X^l - X^{l+1}|_F``, X
            the rows that the logits are products of.
        constant_lowest: the smallest of the proven constants (module text) of all pairs.
        drift_spearman: correlation over pairs of the drift with the mean change of NED.
        rank_spearman, rank_spearman_lowest: correlation over tokens of NED in one layer with
            NED in the next, mean and lowest: is the order of tokens stable?
        holds: no ratio is above its own pair's proven constant.
    """

    pairs: int
    ratio_median: float
    ratio_highest: float
    constant_lowest: float
    drift_spearman: float
    rank_spearman: float
    rank_spearman_lowest: float
    holds: bool


def check_stability(
    windows: Sequence[Sequence[Tensor]], scale: float | None = COSINE
) -> StabilityFigures:
    """Measure on windows of layers of states [N, D], two layers or more, N >= 3."""
    ratios, constants, drifts, changes, ranks = [], [], [], [], []
    for window in windows:
        seen = [(rows_seen(states, scale), attention(states, scale)) for states in window]
        for (rows, before), (next_rows, after) in pairwise(seen):
            drift = float((next_rows - rows).norm())
            if drift == 0:
                continue
            change = (after.ned - before.ned).abs()
            ratios.append(float(change.max()) / drift)
            floor = min(float(before.incoming.min()), float(after.incoming.min()))
            gain = logit_gain((rows, next_rows), scale)
            constants.append(lipschitz_constant(gain, rows.shape[0], floor))
            drifts.append(drift)
            changes.append(float(change.mean()))
            ranks.append(spearman(before.ned, after.ned))
    return StabilityFigures(
        pairs=len(ratios),
        ratio_median=median(ratios),
        ratio_highest=max(ratios),
        constant_lowest=min(constants),
        drift_spearman=spearman(torch.tensor(drifts), torch.tensor(changes)),
        rank_spearman=mean(ranks),
        rank_spearman_lowest=min(ranks),
        holds=all(ratio <= bound for ratio, bound in zip(ratios, constants, strict=True)),
    )


def logit_gain(rows: Sequence[Tensor], scale: float | None) -> float:
    """g of the module text: the scale, or the largest row norm over sqrt(D)."""
    if scale is not None:
        return scale
    return max(float(part.norm(dim=1).max()) for part in rows) / math.sqrt(rows[0].shape[1])


def entropy_deviation(count: int) -> float:
    """V of the module text, for N >= 2 outcomes; nats."""
    return math.sqrt(math.log(count - 1) ** 2 / 4 + 1)


def lipschitz_constant(gain: float, count: int, floor: float, delta: float = DELTA) -> float:
    """The proven constant of the module text.

    Args:
        gain: g.
        count: N >= 2.
        floor: h, the smallest incoming entropy at either layer, in nats.
        delta: NED's delta, in nats.
    """
    low = floor + delta
    slope = math.sqrt(2) * gain * entropy_deviation(count)
    return slope * (1 / low + 2 * (math.log(count) + delta) / low**2)


def jump(size: float, step: float = 2.0) -> tuple[Tensor, Tensor]:
    """Counterexample for eq. 1 to the letter: two layers of N = 2 tokens with D = 1.

    ``X = (a, a)`` becomes ``(a, a - step / a)``. The drift is step / a and goes to 0 with
    growing a, while NED of token 0 goes from 0 to ``1 - h(sigmoid(step)) / log 2``, 0.47 for
    step 2 (h: entropy of a coin).

    Args:
        size: a > 0.
        step: of the first logit, > 0.
    """
    before = torch.full((2, 1), size, dtype=torch.float64)
    after = torch.tensor([[size], [size - step / size]], dtype=torch.float64)
    return before, after
