"""Stand-ins for a layer's rotary embedding and attention during a dense pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from qm_vllm.engine.dense.attention import DenseAttention
from qm_vllm_patches.decoder import AttentionShape

Sink = Callable[[int, torch.Tensor, torch.Tensor], None]
"""``sink(start, keys, values)``: rows [C, KVH, D] from ``start`` on, keys before rotation."""


class LayerRecord:
    """What one layer leaves behind.

    Attributes:
        sink: gets the keys before rotation and the values, chunk by chunk.
        rotated_keys, values: [N, KVH, D], buffers that shall be filled, also with what stands
            before the rows.
        queries: [W, H, D], of the last queries of each prompt; to be filled, too.
        window: the number of last queries that were wanted of each prompt.
    """

    def __init__(self, window: int = 0, sink: Sink | None = None) -> None:
        self.sink = sink
        self.rotated_keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self.queries: torch.Tensor | None = None
        self.window = window

    def split(self, bounds: Sequence[int]) -> list[LayerRecord]:
        """Each prompt's part, views of this one; ``bounds`` as of :class:`Stream`."""
        if len(bounds) == 2:
            return [self]
        parts, first = [], 0
        for start, stop in pairwise(bounds):
            part, last = LayerRecord(self.window), first + min(self.window, stop - start)
            for name in ("rotated_keys", "values"):
                whole = getattr(self, name)
                setattr(part, name, None if whole is None else whole[start:stop])
            part.queries = None if self.queries is None else self.queries[first:last]
            parts.append(part)
            first = last
        return parts


class RotaryTap(nn.Module):
    """Applies the layer's rotary embedding.

    Attributes:
        plain: the keys as they were before it.
        failure: as of :class:`AttentionTap`, which hands it on.
    """

    def __init__(self, rotary: Callable[..., Any], *, keep: bool) -> None:
        super().__init__()
        self.own, self.keep = [rotary], keep
        self.plain: torch.Tensor | None = None
        self.failure: Exception | None = None

    def forward(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        try:
            if self.keep:
                self.plain = key.clone()  # the rotation may be in place
            rotated: tuple[torch.Tensor, torch.Tensor] = self.own[0](positions, query, key)
        except Exception as problem:
            self.failure = problem
            return query, key
        return rotated


class AttentionTap(nn.Module):
    """Answers for vLLM's attention layer with dense causal attention over the sequence.

    Attributes:
        start: the first row of the chunk. before: rows that stand before all of them.
        turns: positions of the rows, which are turned here where the layer has not done it.
        failure: what went wrong here. It is kept and not raised: after this module the ranks of a
            tensor-parallel group add up their results, and one that is missing would leave the
            others waiting for ever.
    """

    def __init__(
        self, attention: DenseAttention, attn: AttentionShape, bounds: Sequence[int],
        record: LayerRecord, rotary: RotaryTap | None = None, before: int = 0,
    ) -> None:
        super().__init__()
        self.attention, self.record, self.bounds = attention, record, bounds
        self.shape = (attn.num_heads, attn.num_kv_heads, attn.head_size)
        self.start, self.before = 0, before
        self.turns: torch.Tensor | None = None
        self._rotary = [rotary]
        self.failure: Exception | None = None

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
    ) -> torch.Tensor:
        try:
            return self._attend(query, key, value)
        except Exception as problem:
            self.failure = problem
            return torch.zeros_like(query)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        heads, kv_heads, size = self.shape
        rows, rotary = query.shape[0], self._rotary[0]
        if rotary is not None and self.turns is not None:
            query, key = rotary(self.turns, query, key)
        if rotary is not None and rotary.failure is not None:
            raise rotary.failure
        query = query.reshape(rows, heads, size)
        key, value = key.reshape(rows, kv_heads, size), value.reshape(rows, kv_heads, size)
        if self.record.sink is not None:
            plain = key if rotary is None or rotary.plain is None else rotary.plain
            self.record.sink(self.start, plain.reshape(rows, kv_heads, size), value)
        if self.record.queries is not None:
            self._keep_queries(query, self.record.queries)
        if len(self.bounds) > 2:
            out = self.attention.attend_prompts(query, key, value, self.bounds)
        else:
            out = self.attention.attend(query, key, value, self.before + self.start)
        return out.reshape(rows, heads * size)

    def _keep_queries(self, query: torch.Tensor, target: torch.Tensor) -> None:
        """Copy what this chunk holds of each prompt's last queries."""
        stop, filled = self.start + query.shape[0], 0
        for begin, end in pairwise(self.bounds):
            first = max(begin, end - self.record.window)
            low, high = max(first, self.start), min(end, stop)
            if low < high:
                place = filled + low - first
                target[place : place + high - low] = query[low - self.start : high - self.start]
            filled += end - first
