"""The Fréchet distance against closed forms and against the textbook's matrix roots."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_vllm_eval.frechet import (
    Gaussian,
    bootstrap_frechet,
    clip_features,
    frechet_distance,
    fvd,
)

SIZES = st.tuples(
    st.integers(2, 30), st.integers(2, 30), st.integers(1, 12), st.integers(0, 10**6)
)


def features(samples: int, width: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(samples, width)) @ draw.normal(size=(width, width)) + draw.normal()


def by_roots(one: np.ndarray, other: np.ndarray) -> float:
    """The formula as it is printed, by roots of symmetric matrices."""
    def root(square):
        values, vectors = np.linalg.eigh(square)
        return (vectors * np.sqrt(values.clip(0))) @ vectors.T

    width = one.shape[1]
    first, second = (np.cov(x, rowvar=False).reshape(width, width) for x in (one, other))
    half = root(first)
    shift = one.mean(0) - other.mean(0)
    return float(shift @ shift + np.trace(first + second - 2 * root(half @ second @ half)))


def test_diagonal_covariances() -> None:
    a, b = np.array([1.0, 4.0, 0.0]), np.array([9.0, 0.25, 2.0])
    got = frechet_distance(
        Gaussian.of([0, 0, 1], np.diag(a)), Gaussian.of([3, 0, 1], np.diag(b))
    )
    assert got == pytest.approx(9 + np.square(np.sqrt(a) - np.sqrt(b)).sum())


def test_commuting_covariances() -> None:
    """Equal eigenvectors: the distance of the square roots of the eigenvalues."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    a, b = np.random.default_rng(1).uniform(0, 5, (2, 6))
    pair = [Gaussian.of(np.zeros(6), (basis * values) @ basis.T) for values in (a, b)]
    assert frechet_distance(*pair) == pytest.approx(np.square(np.sqrt(a) - np.sqrt(b)).sum())


@settings(deadline=None)
@given(SIZES)
def test_equal_sets_shifts_symmetry_and_the_textbook(sizes) -> None:
    many, few, width, seed = sizes
    one, other = features(many, width, seed), features(few, width, seed + 1)
    scale = np.square(one).sum() + np.square(other).sum() + 1
    first, second = Gaussian.fit(one), Gaussian.fit(other)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-12 * scale)
    shift = np.random.default_rng(seed).normal(size=width)
    moved = frechet_distance(first, Gaussian.fit(one + shift))
    assert moved == pytest.approx(float(shift @ shift), abs=1e-12 * scale)
    distance = frechet_distance(first, second)
    assert distance >= 0
    assert distance == pytest.approx(frechet_distance(second, first), abs=1e-12 * scale)
    # The roots lose half of the digits where a covariance has no full rank.
    assert distance == pytest.approx(by_roots(one, other), abs=1e-6 * scale)


def test_fewer_clips_than_dimensions() -> None:
    """Padding with zero columns changes nothing, however many; all is real and exact."""
    one, other = features(8, 5, 0), features(9, 5, 1)
    want = frechet_distance(Gaussian.fit(one), Gaussian.fit(other))
    wide = [np.pad(side, ((0, 0), (0, 700))) for side in (one, other)]
    got = frechet_distance(*(Gaussian.fit(side) for side in wide))
    assert got == pytest.approx(want, rel=1e-10)
    many = np.random.default_rng(2).normal(size=(6, 400))
    fitted = Gaussian.fit(many)
    assert fitted.factor.shape == (6, 400)
    assert frechet_distance(fitted, fitted) < 1e-9
    turned, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(400, 400)))
    pair = [Gaussian.fit(side @ turned) for side in wide_to(400, one, other)]
    assert frechet_distance(*pair) == pytest.approx(want, rel=1e-9)


def wide_to(width: int, *sides: np.ndarray) -> list[np.ndarray]:
    return [np.pad(side, ((0, 0), (0, width - side.shape[1]))) for side in sides]


def test_a_fit_is_numpys_mean_and_covariance() -> None:
    rows = features(50, 4, 7)
    fitted = Gaussian.fit(rows)
    np.testing.assert_allclose(fitted.mean, rows.mean(0))
    np.testing.assert_allclose(fitted.covariance, np.cov(rows, rowvar=False))
    again = Gaussian.of(fitted.mean, fitted.covariance)
    assert frechet_distance(fitted, again) == pytest.approx(0, abs=1e-8)


def test_fvd_takes_batches_and_any_extractor() -> None:
    clips = torch.randn(12, 4, 3, 2, 2, requires_grad=True)  # [S, frames, channels, h, w]

    def brightness(batch):
        return batch.mean((1, 3, 4))

    parts = [clips[:5], clips[5:]]
    assert clip_features(parts, brightness).shape == (12, 3)
    assert fvd(parts, [clips], brightness) == pytest.approx(0, abs=1e-9)
    assert fvd(parts, [clips + 2], brightness) == pytest.approx(3 * 4, abs=1e-4)


def test_the_spread_is_seeded_and_shrinks_with_clips() -> None:
    def spread(count):
        got = bootstrap_frechet(features(count, 3, 1), features(count, 3, 1) + 1, seed=4)
        assert got["low"] <= got["high"]
        assert got["mean"] == pytest.approx(3)
        return got["high"] - got["low"]

    assert spread(20) == spread(20) > spread(2000)


def test_refusals() -> None:
    for bad in (np.zeros((1, 3)), np.zeros(3), np.full((3, 2), np.nan)):
        with pytest.raises(ValueError, match="features"):
            Gaussian.fit(bad)
    with pytest.raises(ValueError, match="3 and 2 dimensions"):
        frechet_distance(Gaussian.fit(features(4, 3, 0)), Gaussian.fit(features(4, 2, 0)))
    with pytest.raises(ValueError, match="not symmetric"):
        Gaussian.of([0, 0], [[1, 1], [0, 1]])
    with pytest.raises(ValueError, match="eigenvalue -1"):
        Gaussian.of([0, 0], [[1, 0], [0, -1]])
    with pytest.raises(ValueError, match="no clips"):
        clip_features([], lambda batch: batch)
    with pytest.raises(ValueError, match="must return"):
        clip_features([np.zeros((2, 3)), np.zeros((2, 4))], lambda batch: batch)
