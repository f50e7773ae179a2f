"""Stand-ins for a layer's rotary embedding and attention during a dense pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qm_vllm.engine.dense_attention import DenseAttention


class LayerRecord:
    """What one layer leaves behind: [N, KVH, D] keys and values, [W, H, D] last queries."""

    def __init__(self) -> None:
        self.plain_keys: torch.Tensor | None = None
        self.rotated_keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self.queries: torch.Tensor | None = None


class RotaryTap(nn.Module):
    """Applies the layer's rotary embedding and keeps the keys as they were before it."""

    def __init__(self, rotary: Callable[..., Any], keys: torch.Tensor | None) -> None:
        super().__init__()
        self.own, self.keys, self.start = [rotary], keys, 0

    def forward(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.keys is not None:
            rows = key.shape[0]
            self.keys[self.start : self.start + rows] = key.reshape(rows, *self.keys.shape[1:])
        rotated: tuple[torch.Tensor, torch.Tensor] = self.own[0](positions, query, key)
        return rotated


class AttentionTap(nn.Module):
    """Answers for vLLM's attention layer with dense causal attention over the sequence."""

    def __init__(
        self, attention: DenseAttention, attn: Any, num_tokens: int, record: LayerRecord
    ) -> None:
        super().__init__()
        self.attention, self.record, self.num_tokens = attention, record, num_tokens
        self.shape = (attn.num_heads, attn.num_kv_heads, attn.head_size)
        self.start = 0

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
    ) -> torch.Tensor:
        heads, kv_heads, size = self.shape
        rows, stop = query.shape[0], self.start + query.shape[0]
        query = query.reshape(rows, heads, size)
        key, value = key.reshape(rows, kv_heads, size), value.reshape(rows, kv_heads, size)
        record = self.record
        if record.queries is not None:
            first = self.num_tokens - record.queries.shape[0]
            if stop > first:
                low = max(first, self.start)
                record.queries[low - first : stop - first] = query[low - self.start :]
        out = self.attention.attend(query, key, value, self.start)
        return out.reshape(rows, heads * size)
