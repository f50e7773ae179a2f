"""From samples to batches of merged states: the frozen encoder, stages 1 and 2, padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qm_vllm.compress import Compressed, compress
from qm_vllm.config import QuickMergeConfig
from qm_vllm.prior.config import PriorConfig
from qm_vllm.prior.data import Sample
from qm_vllm.prior.side_inputs import hashed_words, with_times
from qm_vllm.prior.soft import layer_scores, merge_scored

IGNORED = -100
CACHE_BYTES = 512 << 20
"""Most memory that states of feature files take; reading and scoring them again takes longer."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Merged states of several sequences.

    Attributes:
        states: [B, K_max, D], padded on the right with zeros.
        lengths: int64 [B].
        targets: int64 [B, M] output ids, -100 where a row has fewer; None without a head.
        given: int64 [B], leading targets that are read and not scored; None without targets.
        source_tokens: tokens before merging, over the batch.
    """

    states: Tensor
    lengths: Tensor
    targets: Tensor | None
    given: Tensor | None
    source_tokens: int


class BatchMaker:
    """Encodes and merges samples.

    Args:
        encoder: a frozen encoder (:mod:`qm_vllm.encoders`).
        prior: the shape of the prior, for its heads.
        window_tokens: tokens of a sequence, at most.
        target_tokens: tokens of the continuation, at most.
    """

    def __init__(
        self, encoder: Any, prior: PriorConfig, window_tokens: int, target_tokens: int
    ) -> None:
        self.encoder, self.prior = encoder, prior
        self.window_tokens, self.target_tokens = window_tokens, target_tokens
        self.merging = merging(encoder.hidden_size)
        self._held: dict[Path, tuple[list[Tensor], Tensor]] = {}
        self._room = CACHE_BYTES

    def noisy(
        self, samples: Sequence[Sample], ratios: Sequence[float], temperature: float,
        generator: torch.Generator, layer_weights: Tensor | None = None,
    ) -> Batch:
        """A batch for training: Gumbel masses, K drawn by the caller as a share of N each."""
        merged, sizes = [], []
        for sample, ratio in zip(samples, ratios, strict=True):
            layers, scores = self._scored(sample)
            count = layers[-1].shape[0]
            soft = merge_scored(
                layers[-1], scores, kept(count, ratio), self.merging, temperature=temperature,
                layer_weights=layer_weights, generator=generator,
            )
            merged.append(with_times(soft.states, soft.kept, count, self.prior.time_features))
            sizes.append(count)
        return self._padded(merged, samples, sum(sizes))

    def fixed(self, samples: Sequence[Sample], ratio: float) -> Batch:
        """A batch as inference makes it: no noise, the same every time."""
        results = [self.compressed(sample, ratio) for sample in samples]
        times = self.prior.time_features
        merged = [with_times(one.states, one.kept, one.num_tokens, times) for one in results]
        return self._padded(merged, samples, sum(one.num_tokens for one in results))

    def compressed(self, sample: Sample, ratio: float) -> Compressed:
        """One sample through :func:`qm_vllm.compress.compress`."""
        layers = self._layers(sample)
        k = kept(layers[-1].shape[0], ratio)
        result = compress(
            layers[-1], replace(self.merging, max_kept=k), layer_states=layers[:-1]
        )
        assert isinstance(result, Compressed)
        return result

    def _scored(self, sample: Sample) -> tuple[list[Tensor], Tensor]:
        """States and scores [L, N] of a sample; those of files are kept while there is room."""
        source = sample.source
        if isinstance(source, Path) and source in self._held:
            return self._held[source]
        layers = self._layers(sample)
        scores = torch.stack(
            [layer_scores(layer, self.merging.logit_scale) for layer in layers[:-1]]
        )
        size = sum(tensor.nbytes for tensor in {id(t): t for t in layers}.values())
        if isinstance(source, Path) and size <= self._room:
            self._room -= size
            self._held[source] = layers, scores
        return layers, scores

    def _layers(self, sample: Sample) -> list[Tensor]:
        """States of the first window in all layers, without special tokens: [n, D] each."""
        window = next(iter(self.encoder.stream(sample.source, window=self.window_tokens)))
        plain = ~window.special
        layers = [layer[plain] for layer in window.layers]
        if layers[-1].shape[0] < 1:
            raise ValueError(f"{_name(sample)} has no tokens besides special ones")
        return layers if len(layers) > 1 else layers * 2  # features have one layer

    def _padded(self, merged: list[Tensor], samples: Sequence[Sample], tokens: int) -> Batch:
        states = torch.nn.utils.rnn.pad_sequence(merged, batch_first=True)
        lengths = torch.tensor([one.shape[0] for one in merged], device=states.device)
        targets, given = self._targets(samples, states.device)
        return Batch(states, lengths, targets, given, tokens)

    def _targets(
        self, samples: Sequence[Sample], device: torch.device
    ) -> tuple[Tensor | None, Tensor | None]:
        queries = [self.query_ids(sample.query) for sample in samples]
        rows = [query + self._ids(one) for query, one in zip(queries, samples, strict=True)]
        width = max(len(row) for row in rows)
        if not width:
            return None, None
        rows = [row + [IGNORED] * (width - len(row)) for row in rows]
        given = torch.tensor([len(query) for query in queries], device=device)
        return torch.tensor(rows, device=device), given

    def query_ids(self, text: str) -> list[int]:
        """Output ids of a query: the text encoder's tokens, or hashed words without one."""
        if not text or not self.prior.num_tokens:
            return []
        first = self.prior.ids("tokens").start
        tokenizer = getattr(self.encoder, "tokenizer", None)
        if tokenizer is None:
            return [first + i for i in hashed_words(text, self.prior.num_tokens)]
        return [first + i for i in tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _ids(self, sample: Sample) -> list[int]:
        prior = self.prior
        if sample.span is not None and prior.num_time_bins:
            bins, count = prior.ids("time_bins"), prior.num_time_bins
            first = min(int(sample.span[0] * count), count - 1)
            last = min(max(math.ceil(sample.span[1] * count) - 1, first), count - 1)
            return [bins[first], bins[last]]
        if sample.label is not None and prior.num_classes:
            return [prior.ids("classes")[sample.label]]
        if sample.following and prior.num_tokens and self.target_tokens:
            tokens = prior.ids("tokens")
            ids = self.encoder.tokenizer(
                sample.following[: 16 * self.target_tokens], add_special_tokens=False
            )["input_ids"]
            return [tokens[i] for i in ids[: self.target_tokens]]
        return []


def merging(width: int) -> QuickMergeConfig:
    """How states of a frozen encoder are merged, in training and after it.

    Eq. 1 for rows of unit RMS: the scale is sqrt(D).
    """
    return QuickMergeConfig(
        saliency="entropy", query_visible=False, min_tokens=2, protect_first=0, protect_last=1,
        logit_scale=math.sqrt(width), keep_roles=(),
    )


def kept(count: int, ratio: float) -> int:
    """K of N tokens: ``ceil(ratio N)``, at least 1."""
    return min(count, max(1, math.ceil(ratio * count - 1e-9)))


def _name(sample: Sample) -> str:
    text = str(sample.source)
    return text if len(text) <= 40 else text[:37] + "..."
