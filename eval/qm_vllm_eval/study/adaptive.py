"""Does a budget per prompt pay? Adaptive K against one share for all, at equal mean K."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STEPS = 200
"""Points between the smallest and the largest share, evenly spaced in its logarithm."""
FIXED, ORACLE = "fixed", "oracle"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One prompt at increasing shares of its tokens.

    Attributes:
        family: of its task. none, plain: NLL without context and with all of it.
        nll: [R], at each share. signals: by name [R], what an engine could see at each share,
            falling as more is kept.
    """

    family: str
    none: float
    plain: float
    nll: Floats
    signals: Mapping[str, Floats]


@dataclass(frozen=True)
class Outcome:
    """A policy at one mean share: what it keeps.

    Attributes:
        share: mean K / N over prompts. retention: mean over families, each cut at 1.
        loss: mean over prompts of how much NLL is above the full prompt's, at least 0.
        shares: mean K / N by family.
    """

    policy: str
    share: float
    retention: float
    loss: float
    shares: Mapping[str, float]


def compare(
    curves: Sequence[Curve], ratios: Sequence[float], targets: Sequence[float]
) -> list[Outcome]:
    """Every policy at every mean share.

    A policy of a signal gives each prompt the smallest share at which the signal is at or below
    one threshold, the same for all prompts; the threshold is set so that the mean share is
    the target. "oracle" uses the loss itself, which no engine knows.

    Args:
        ratios: [R], increasing. targets: mean shares, within the ratios.
    """
    fine = np.exp(np.linspace(np.log(ratios[0]), np.log(ratios[-1]), STEPS))
    where = np.log(np.asarray(ratios))
    nll = np.stack([np.interp(np.log(fine), where, curve.nll) for curve in curves])
    loss = nll - np.array([[curve.plain] for curve in curves])
    signals = {
        name: np.stack([np.interp(np.log(fine), where, c.signals[name]) for c in curves])
        for name in curves[0].signals
    }
    found = []
    for target in targets:
        same = np.full(len(curves), int(np.abs(fine - target).argmin()))
        found.append(_outcome(FIXED, curves, fine, nll, loss, same))
        for name, signal in (*signals.items(), (ORACLE, loss)):
            picks = _threshold(signal, fine, target)
            found.append(_outcome(name, curves, fine, nll, loss, picks))
    return found


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Spearman's, without correction for ties."""
    ranks = [np.argsort(np.argsort(np.asarray(values))) for values in (left, right)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _threshold(signal: Floats, fine: Floats, target: float) -> NDArray[np.int64]:
    """Points [S] of the threshold whose mean share is nearest to the target."""
    low, high = float(signal.min()) - 1e-9, float(signal.max())
    best, picks = np.inf, np.zeros(len(signal), dtype=np.int64)
    for _ in range(60):
        middle = (low + high) / 2
        now = _smallest(signal, middle)
        mean = float(fine[now].mean())
        if abs(mean - target) < best:
            best, picks = abs(mean - target), now
        low, high = (middle, high) if mean > target else (low, middle)
    return picks


def _smallest(signal: Floats, threshold: float) -> NDArray[np.int64]:
    within = signal <= threshold
    return np.where(within.any(1), within.argmax(1), signal.shape[1] - 1)


def _outcome(
    policy: str, curves: Sequence[Curve], fine: Floats, nll: Floats, loss: Floats,
    picks: NDArray[np.int64],
) -> Outcome:
    rows = np.arange(len(curves))
    said = nll[rows, picks]
    families = np.array([curve.family for curve in curves])
    kept, shares = [], {}
    for family in sorted(set(families)):
        own = families == family
        none = np.mean([c.none for c in curves if c.family == family])
        full = np.mean([c.plain for c in curves if c.family == family])
        kept.append(min(1.0, float((none - said[own].mean()) / (none - full))))
        shares[str(family)] = float(fine[picks[own]].mean())
    return Outcome(
        policy, float(fine[picks].mean()), float(np.mean(kept)),
        float(np.maximum(loss[rows, picks], 0).mean()), shares,
    )
