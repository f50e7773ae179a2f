"""Sequences that a frozen encoder has read, ready for every method of the tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qm_vllm_eval.baselines.base import Source

IGNORED = -100


@dataclass(frozen=True, eq=False)
class Split:
    """S sequences of one task: what goes in and what a decoder should say.

    Attributes:
        states: float16 [S, N, D], the encoder's exit. saliency, absolute: [S, N].
        raw: uint8 [S, U], raw_lengths: int64 [S], see :class:`Source`.
        targets: int64 [S, M] output ids, -100 where a row has fewer.
        units: float [S], source tokens that a row's targets stand for.
        truth: float [S, F, D] real continuations, only of video; else [S, 0].
        extra_nats: float [S], what the targets cost beyond the ids (pieces outside the vocabulary).
    """

    states: Tensor
    saliency: Tensor
    absolute: Tensor
    raw: Tensor
    raw_lengths: Tensor
    targets: Tensor
    units: Tensor
    truth: Tensor
    extra_nats: Tensor

    def __len__(self) -> int:
        return self.states.shape[0]

    def source(self, rows: Tensor, device: torch.device) -> Source:
        """Sequences by index [B], as methods take them, on a device."""
        return Source(
            self.states[rows].to(device).float(),
            *(getattr(self, name)[rows].to(device)
              for name in ("saliency", "absolute", "raw", "raw_lengths")),
        )


@dataclass(frozen=True, eq=False)
class Prepared:
    """One task.

    Attributes:
        task: "text", "image" or "video". vocabulary: output ids.
        data, encoder: what it is made of, for the record.
        codes: [V, D], what a video's output ids stand for; empty for the others.
    """

    task: str
    train: Split
    test: Split
    vocabulary: int
    data: str
    encoder: str
    codes: Tensor

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.train.states.shape[1]

    @property
    def width(self) -> int:
        """D."""
        return self.train.states.shape[2]


def entropies(layer: Tensor) -> Tensor:
    """H of eq. 1-2 for rows of unit RMS, batched: the logit is sqrt(D) times the cosine.

    Args:
        layer: [B, N, D], what enters a layer.

    Returns:
        [B, N] nats; what :func:`qm_vllm.compress.entropy.attention_entropy` gives row by row.
    """
    unit = torch.nn.functional.normalize(layer.float(), dim=-1)
    logs = (math.sqrt(layer.shape[-1]) * unit @ unit.mT).log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def scores(layers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Relative and absolute saliency [B, N] each, from what enters the layers."""
    relative, absolute = [], []
    for layer in layers:
        found = entropies(layer)
        low, high = found.amin(-1, keepdim=True), found.amax(-1, keepdim=True)
        flat = high - low <= 1e-6 * high.abs()
        scaled = 1 - (found - low) / (high - low).clamp_min(1e-12)
        relative.append(torch.where(flat, torch.full_like(scaled, 0.5), scaled))
        absolute.append(1 - found / math.log(max(layer.shape[1], 2)))
    return torch.stack(relative).mean(0), torch.stack(absolute).mean(0)


def padded_bytes(rows: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    """uint8 [S, U] padded with 0 on the right, and the length of each; an empty row counts as 1."""
    width = max(1, *(len(row) for row in rows))
    raw = torch.zeros(len(rows), width, dtype=torch.uint8)
    for i, row in enumerate(rows):
        raw[i, : len(row)] = torch.frombuffer(bytearray(row), dtype=torch.uint8) if row else 0
    return raw, torch.tensor([max(1, len(row)) for row in rows])


def save(prepared: Prepared, path: Path) -> None:
    """Keep what an encoder took minutes for; a file appears whole."""
    part = path.with_suffix(".part")
    torch.save(
        {
            "train": vars(prepared.train), "test": vars(prepared.test),
            "rest": {name: getattr(prepared, name) for name in
                     ("task", "vocabulary", "data", "encoder", "codes")},
        },
        part,
    )
    part.replace(path)


def load(path: Path) -> Prepared:
    """What :func:`save` wrote."""
    held = torch.load(path, weights_only=True, mmap=True)
    return Prepared(train=Split(**held["train"]), test=Split(**held["test"]), **held["rest"])
