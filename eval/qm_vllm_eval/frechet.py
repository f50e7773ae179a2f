"""Fréchet distance of features of real and generated clips: FVD by its definition.

FVD (Unterthiner et al., 2018) fits one Gaussian to the features of real clips and one to those of
generated ones and takes the squared Fréchet distance between them:

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)

The published figures take their features from an I3D network trained on Kinetics. The network is
an argument here (clips -> [S, d]); distances of different networks do not compare.

With S = F^T F the last trace is the sum of the singular values of F1 F2^T, whose squares are the
eigenvalues of the symmetric product F1 S2 F1^T. No square root of a matrix is taken: nothing can
turn complex, and zero eigenvalues (fewer clips than dimensions) do not lose half of the digits.
torchmetrics and scipy go by eigenvalues of S1 S2 or its matrix root, which do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qm_vllm_eval.metrics import LEVEL

Features = Callable[[Any], Any]
"""A batch of clips to features [S, d] (array or tensor)."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution, its covariance as F^T F.

    Attributes:
        mean: [d] float64.
        factor: F [r, d] float64, r the smaller of samples and dimensions.
    """

    mean: NDArray[np.float64]
    factor: NDArray[np.float64]

    @classmethod
    def fit(cls, features: ArrayLike) -> Gaussian:
        """Mean and unbiased covariance (S - 1) of features [S >= 2, d].

        Raises:
            ValueError: another shape, or NaN or infinite features.
        """
        rows = np.asarray(features, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[0] < 2 or rows.shape[1] < 1:
            raise ValueError(f"features must be [S >= 2, d >= 1], not {list(rows.shape)}")
        if not np.isfinite(rows).all():
            raise ValueError(f"features {list(rows.shape)} hold NaN or infinity")
        mean = rows.mean(0)
        factor = (rows - mean) / np.sqrt(len(rows) - 1)
        if factor.shape[0] > factor.shape[1]:
            factor = np.linalg.qr(factor, mode="r")
        return cls(mean, factor)

    @classmethod
    def of(cls, mean: ArrayLike, covariance: ArrayLike) -> Gaussian:
        """From a mean [d] and a covariance [d, d].

        Raises:
            ValueError: the shapes differ, the covariance is not symmetric, or it has an
                eigenvalue below zero by more than rounding.
        """
        centre = np.asarray(mean, dtype=np.float64)
        square = np.asarray(covariance, dtype=np.float64)
        if centre.ndim != 1 or square.shape != (len(centre), len(centre)):
            raise ValueError(
                f"mean {list(centre.shape)} and covariance {list(square.shape)} must be [d], [d, d]"
            )
        size = np.abs(square).max(initial=0.0)
        if not np.allclose(square, square.T, rtol=0, atol=1e-8 * size):
            raise ValueError("the covariance is not symmetric")
        values, vectors = np.linalg.eigh((square + square.T) / 2)
        if values.min(initial=0.0) < -1e-8 * size:
            raise ValueError(f"the covariance has the eigenvalue {values.min():.3g}")
        return cls(centre, np.sqrt(values.clip(0))[:, None] * vectors.T)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """[d, d]."""
        return self.factor.T @ self.factor


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """The squared Fréchet distance (what FID and FVD report), >= 0.

    Raises:
        ValueError: the dimensions differ.
    """
    if one.mean.shape != other.mean.shape:
        raise ValueError(
            f"features of {len(one.mean)} and {len(other.mean)} dimensions are not comparable"
        )
    shift = one.mean - other.mean
    common = np.linalg.svd(one.factor @ other.factor.T, compute_uv=False).sum()
    spread = np.square(one.factor).sum() + np.square(other.factor).sum() - 2 * common
    return float(shift @ shift + max(spread, 0.0))


def clip_features(batches: Iterable[Any], features: Features) -> NDArray[np.float64]:
    """Features of all batches of clips, [S, d].

    Raises:
        ValueError: there is no batch, or the extractor returns another shape than [B, d].
    """
    rows = [_array(features(batch)) for batch in batches]
    if not rows:
        raise ValueError("there are no clips to take features of")
    shapes = [list(row.shape) for row in rows]
    if any(row.ndim != 2 or row.shape[1] != rows[0].shape[1] for row in rows):
        raise ValueError(f"the extractor must return [B, d] with one d, not {shapes}")
    return np.concatenate(rows)


def fvd(real: Iterable[Any], generated: Iterable[Any], features: Features) -> float:
    """Fréchet distance of the features of batches of real and of generated clips.

    Args:
        real, generated: batches of clips in whatever form ``features`` reads.
        features: the network, clips -> [B, d].

    Raises:
        ValueError: fewer than two clips on a side, or features that do not fit.
    """
    fitted = [Gaussian.fit(clip_features(clips, features)) for clips in (real, generated)]
    return frechet_distance(*fitted)


def bootstrap_frechet(
    real: ArrayLike, generated: ArrayLike, *, resamples: int = 200, seed: int = 0
) -> dict[str, float]:
    """``mean`` (the distance itself), ``low`` and ``high``: 95 % of distances of drawn clips.

    A distance between samples is biased upwards, the more so the fewer clips there are, and a
    resample has fewer different ones: read the spread as a scale and compare methods on the same
    number of clips. The interval may lie wholly above the distance.

    Args:
        real, generated: features [S, d] each, drawn again independently.

    Raises:
        ValueError: as :meth:`Gaussian.fit`.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (real, generated)]
    distance = frechet_distance(*(Gaussian.fit(side) for side in sides))
    draw = np.random.default_rng(seed)
    values = [
        frechet_distance(
            *(Gaussian.fit(side[draw.integers(0, len(side), len(side))]) for side in sides)
        )
        for _ in range(resamples)
    ]
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return {"mean": distance, "low": float(low), "high": float(high)}


def _array(features: Any) -> NDArray[np.float64]:
    """Array of an array or of a tensor on any device, with or without gradients."""
    if hasattr(features, "detach"):
        features = features.detach().cpu().double().numpy()
    return np.asarray(features, dtype=np.float64)
