"""Attention of transformers' models that keeps what it computed: keys, values, queries, weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from qm_vllm.layers import WINDOW_QUERIES


@dataclass
class Rows:
    """Keys, values and positions of each layer so far, and what the prompt's end looked at."""

    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    positions: dict[int, torch.Tensor] = field(default_factory=dict)
    windows: dict[int, int | None] = field(default_factory=dict)
    weights: dict[int, torch.Tensor] = field(default_factory=dict)
    queries: dict[int, torch.Tensor] = field(default_factory=dict)
    scales: dict[int, tuple[float, float]] = field(default_factory=dict)
    now: torch.Tensor = field(default_factory=lambda: torch.empty(0))


ROWS: list[Rows] = [Rows()]


def attend(
    module, query, key, value, attention_mask, scaling, dropout=0.0, sliding_window=None,
    softcap=None, **_,
):
    """Attention over all rows of this layer: [1, H, T, D] to [1, T, H, D]."""
    rows, layer = ROWS[0], module.layer_idx
    if layer in rows.keys:
        key = torch.cat((rows.keys[layer], key), 2)
        value = torch.cat((rows.values[layer], value), 2)
        places = torch.cat((rows.positions[layer], rows.now))
    else:
        places = rows.now
    rows.keys[layer], rows.values[layer], rows.positions[layer] = key, value, places
    rows.windows[layer] = sliding_window
    each = query.shape[1] // key.shape[1]
    logits = query @ key.repeat_interleave(each, 1).transpose(2, 3) * scaling
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    seen = places <= rows.now[:, None]
    if sliding_window:
        seen &= places > rows.now[:, None] - sliding_window
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    rows.weights[layer] = weights[0, :, -WINDOW_QUERIES:]
    rows.queries[layer] = query[0]
    rows.scales[layer] = scaling, softcap or 0.0
    return (weights @ value.repeat_interleave(each, 1)).transpose(1, 2), None


AttentionInterface.register("rows", attend)
AttentionMaskInterface.register("rows", lambda *_, **__: None)
