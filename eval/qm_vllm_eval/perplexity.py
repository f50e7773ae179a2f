"""Perplexity per source token and bits per byte, comparable between methods that merge.

A method that turns N tokens into K states makes K predictions where the baseline makes N, so a mean
over predictions compares nothing. Here the total negative log-likelihood of a text is divided by
what does not depend on the method:

- perplexity: exp(nats / source tokens), source tokens being the tokens of the text that was
  predicted, under one tokenizer that is the same for all methods, without special tokens;
- bits per byte: nats / (ln 2 x UTF-8 bytes of that text), which compares tokenizers as well.

The total has to be that of the whole text: a method that predicts only some of the tokens has to
give the nats of all of them, or be scored on the text that it does predict (the continuation).
torchmetrics' Perplexity takes logits of every position and divides by the number of positions, so
it does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qm_vllm_eval.metrics import LEVEL, RESAMPLES

IGNORED = -100
"""Target of a position that is not predicted."""


@dataclass(frozen=True)
class TextLoss:
    """What one text cost.

    Attributes:
        nats: total negative log-likelihood of the text, >= 0.
        source_tokens: its tokens under the common tokenizer, >= 1.
        source_bytes: its UTF-8 bytes; None where it has no bytes (video, audio).

    Raises:
        ValueError: a figure is impossible.
    """

    nats: float
    source_tokens: int
    source_bytes: int | None = None

    def __post_init__(self) -> None:
        """Checks the figures; an infinite loss (probability 0) is allowed, NaN is not."""
        if not self.nats >= 0:
            raise ValueError(f"nats={self.nats} must be a total from 0 up")
        if self.source_tokens < 1:
            raise ValueError(f"source_tokens={self.source_tokens} must be at least 1")
        if self.source_bytes is not None and self.source_bytes < 1:
            raise ValueError(f"source_bytes={self.source_bytes} must be at least 1")


class Perplexity:
    """Adds up texts over batches; the figures are of all of them together.

    Texts are kept one by one, because the interval draws whole texts again.
    """

    def __init__(self) -> None:
        self.texts: list[TextLoss] = []

    def add(
        self, nats: Tensor | Sequence[float] | float,
        source_tokens: Tensor | Sequence[int] | int,
        source_bytes: Tensor | Sequence[int] | int | None = None,
    ) -> None:
        """Add one text or a batch of them.

        Args:
            nats: total NLL of each text, [B] or a number (:func:`total_nats`).
            source_tokens: tokens of each text, [B] or a number.
            source_bytes: UTF-8 bytes of each, [B] or a number; None if there are none.

        Raises:
            ValueError: the lengths differ, or a figure is impossible.
        """
        losses, tokens = _column(nats), _column(source_tokens)
        sizes = [None] * len(losses) if source_bytes is None else _column(source_bytes)
        if not len(losses) == len(tokens) == len(sizes):
            raise ValueError(
                f"{len(losses)} losses, {len(tokens)} token counts and {len(sizes)} byte counts "
                "are not of the same texts"
            )
        self.texts += [
            TextLoss(float(loss), int(count), None if size is None else int(size))
            for loss, count, size in zip(losses, tokens, sizes, strict=True)
        ]

    def merge(self, others: Iterable[Perplexity]) -> None:
        """Take over the texts of other accumulators (of other workers)."""
        for other in others:
            self.texts += other.texts

    @property
    def source_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(text.source_tokens for text in self.texts)

    @property
    def perplexity(self) -> float:
        """exp(total nats / source tokens); NaN without texts, infinite above e^709."""
        return float(self._perplexity(np.arange(len(self.texts))[None])[0])

    @property
    def bits_per_byte(self) -> float:
        """Total bits / UTF-8 bytes; NaN without texts or where a text has no bytes."""
        sizes = [text.source_bytes for text in self.texts]
        if not sizes or None in sizes:
            return float("nan")
        bits = math.fsum(text.nats for text in self.texts) / math.log(2)
        return bits / sum(size for size in sizes if size is not None)

    def interval(self, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, float]:
        """``mean`` (the perplexity), ``low``, ``high``: 95 % bootstrap over whole texts."""
        if not self.texts:
            return dict.fromkeys(("mean", "low", "high"), float("nan"))
        draw = np.random.default_rng(seed)
        drawn = draw.integers(0, len(self.texts), size=(resamples, len(self.texts)))
        values = self._perplexity(drawn)
        low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        return {"mean": self.perplexity, "low": float(low), "high": float(high)}

    def _perplexity(self, rows: np.ndarray) -> np.ndarray:
        if not self.texts:
            return np.full(len(rows), np.nan)
        nats = np.array([text.nats for text in self.texts], dtype=np.float64)
        tokens = np.array([text.source_tokens for text in self.texts], dtype=np.float64)
        with np.errstate(over="ignore"):
            return np.exp(nats[rows].sum(1) / tokens[rows].sum(1))


def total_nats(logits: Tensor, targets: Tensor, *, ignored: int = IGNORED) -> Tensor:
    """Total NLL of each row in nats, float64 [B].

    Args:
        logits: [B, T, V]; those at t predict the target at t.
        targets: int64 [B, T]; positions with ``ignored`` are not predicted.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if logits.ndim != 3 or targets.shape != logits.shape[:2]:
        raise ValueError(
            f"logits {list(logits.shape)} and targets {list(targets.shape)} must be [B, T, V] "
            "and [B, T]"
        )
    losses = torch.nn.functional.cross_entropy(
        logits.double().flatten(0, 1), targets.flatten(), ignore_index=ignored, reduction="none"
    )
    return losses.reshape(targets.shape).sum(1)


def _column(values: Tensor | Sequence[float] | float) -> list[float]:
    if isinstance(values, Tensor):
        return list(values.detach().double().reshape(-1).tolist())
    return list(values) if isinstance(values, Sequence) else [values]
