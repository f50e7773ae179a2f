"""Inputs and independent references for the unit tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qm_vllm import config as configuration
from qm_vllm.compress import SALIENCIES

METHODS = tuple(SALIENCIES)
COMBINATIONS = [
    (saliency, grouping, merge)
    for saliency in ("auto", *METHODS)
    for grouping in configuration.GROUPINGS
    for merge in configuration.MERGES
]


def states(n: int, d: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random rows around a common direction, as residual streams have one."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=generator) + torch.randn(d, generator=generator)
    return rows.to(dtype)


def attention(n: int, window: int = 32, layers: int = 2, seed: int = 0) -> list[Tensor]:
    """Causal softmax attention of the last positions, per layer [3, min(window, n), n]."""
    generator = torch.Generator().manual_seed(seed + 1)
    result = []
    for _ in range(layers):
        rows = min(window, n)
        logits = 2 * torch.randn(3, rows, n, generator=generator)
        future = torch.arange(n)[None] > torch.arange(n - rows, n)[:, None]
        result.append(logits.masked_fill(future, -torch.inf).softmax(-1))
    return result


def seen(n: int, window: int = 32, seed: int = 0) -> dict[str, Any]:
    """What the scores need besides states, for any of them."""
    made = torch.Generator().manual_seed(seed + 2)
    return {
        "attention": attention(n, window, seed=seed), "leverage": torch.randn(n, generator=made),
    }


def reference_entropy(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Eq. 1-2 in float64, written out: outgoing entropy, and that of normalised columns."""
    rows = x.double()
    rms = rows.pow(2).mean(1, keepdim=True).sqrt()
    rows = torch.where(rms > 0, rows / rms, 0.0)
    return entropies_of(scale / x.shape[1] * rows @ rows.T)


def reference_raw_entropy(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 1-2 to the letter in float64."""
    rows = x.double()
    return entropies_of(rows @ rows.T / x.shape[1] ** 0.5)


def entropies_of(logits: Tensor) -> tuple[Tensor, Tensor]:
    log_a = torch.log_softmax(logits, dim=1)
    a = log_a.exp()
    outgoing = -torch.where(a > 0, a * log_a, 0.0).sum(1)
    columns = a / a.sum(0, keepdim=True)
    incoming = -torch.special.xlogy(columns, columns).sum(0)
    return outgoing, incoming


def assert_close(actual: Tensor, expected: Tensor, rtol: float = 1e-5) -> None:
    """Relative error of at most rtol, down to what the float64 reference itself resolves."""
    error = (actual.double() - expected).abs()
    allowed = rtol * expected.abs() + 1e-13
    worst = (error / allowed).max().item()
    assert worst <= 1, f"error is {worst:.2f} times the allowed one"
