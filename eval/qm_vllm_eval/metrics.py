"""The share of the context's benefit that a method keeps, means and intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
LEVEL = 0.95
SMALLEST_BENEFIT = 1e-3
"""Nats per token. Where the context helps by less, a share of that help says nothing."""


def retention(nll_none: ArrayLike, nll_method: ArrayLike, nll_full: ArrayLike) -> float:
    """Share of the full prompt's benefit that a method keeps.

    (mean none - mean method) / (mean none - mean full): 1 is as good as the full prompt, 0 as
    bad as no context; it may leave [0, 1]. NaN where the full prompt helps or harms by less
    than :data:`SMALLEST_BENEFIT`.

    Args:
        nll_none, nll_method, nll_full: mean NLL of the target per sample [S], nats per token,
            of the same samples in the same order.

    Raises:
        ValueError: the three are not of one length, or empty.
    """
    none, method, full = _paired(nll_none, nll_method, nll_full)
    return float(_share(none.mean(), method.mean(), full.mean()))


def bootstrap_retention(
    nll_none: ArrayLike,
    nll_method: ArrayLike,
    nll_full: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of :func:`retention`, samples drawn again in whole triples.

    Resamples without a defined retention are left out; (NaN, NaN) if the retention of the
    samples themselves is undefined.

    Raises:
        ValueError: as :func:`retention`.
    """
    none, method, full = _paired(nll_none, nll_method, nll_full)
    if np.isnan(_share(none.mean(), method.mean(), full.mean())):
        return float("nan"), float("nan")
    drawn = _draws(len(none), resamples, seed)
    shares = _share(none[drawn].mean(1), method[drawn].mean(1), full[drawn].mean(1))
    return _interval(shares)


def bootstrap_mean(
    values: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the mean of ``values`` [S]; NaN entries are left out.

    (NaN, NaN) if nothing is left.
    """
    kept = np.asarray(values, dtype=np.float64).ravel()
    kept = kept[~np.isnan(kept)]
    if not len(kept):
        return float("nan"), float("nan")
    return _interval(kept[_draws(len(kept), resamples, seed)].mean(1))


def mean_interval(values: ArrayLike, *, seed: int = 0) -> dict[str, float]:
    """``mean``, ``low`` and ``high`` of values [S], by :func:`bootstrap_mean`; NaN for none."""
    kept = np.asarray(values, dtype=np.float64).ravel().tolist()
    low, high = bootstrap_mean(kept, seed=seed)
    mean = math.fsum(kept) / len(kept) if kept else float("nan")
    return {"mean": mean, "low": low, "high": high}


def _paired(*columns: ArrayLike) -> list[NDArray[np.float64]]:
    arrays = [np.asarray(column, dtype=np.float64).ravel() for column in columns]
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"need the same samples of all three, got {[len(a) for a in arrays]}")
    return arrays


def _share(none: Any, method: Any, full: Any) -> NDArray[np.float64]:
    benefit = np.asarray(none - full, dtype=np.float64)
    defined = np.abs(benefit) >= SMALLEST_BENEFIT
    return np.where(defined, (none - method) / np.where(defined, benefit, 1.0), np.nan)


def _draws(samples: int, resamples: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, samples, size=(resamples, samples))


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
