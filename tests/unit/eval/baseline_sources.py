"""Sequences as a frozen encoder might leave them, for the tests of qm_vllm_eval.baselines."""

from __future__ import annotations

import torch

from qm_vllm_eval.baselines import Noise, Source


def make_source(batch: int = 5, count: int = 23, width: int = 12, size: int = 61) -> Source:
    """Random states whose scores have ties; raw bytes of every length from 1 to size."""
    draw = torch.Generator().manual_seed(batch * 1000 + count)
    states = torch.randn(batch, count, width, generator=draw)
    states = states * torch.rand(batch, count, 1, generator=draw).mul(2).exp()
    saliency = torch.rand(batch, count, generator=draw).mul(20).round().div(20)
    absolute = torch.rand(batch, count, generator=draw)
    lengths = torch.randint(1, size + 1, (batch,), generator=draw)
    lengths[0] = 1
    lengths[-1] = size if batch > 1 else 1
    raw = torch.randint(0, 256, (batch, size), generator=draw, dtype=torch.uint8)
    raw = raw.masked_fill(torch.arange(size) >= lengths[:, None], 0)
    return Source(states, saliency, absolute, raw, lengths)


def rows(source: Source, start: int, stop: int) -> Source:
    """Some sequences of a batch."""
    return Source(
        source.states[start:stop], source.saliency[start:stop], source.absolute[start:stop],
        source.raw[start:stop], source.raw_lengths[start:stop],
    )


def noise(seed: int = 0, temperature: float = 0.5) -> Noise:
    """Randomness on the CPU."""
    return Noise(torch.Generator().manual_seed(seed), temperature)
