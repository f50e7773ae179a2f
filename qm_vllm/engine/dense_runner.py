"""Runs decoder layers of the served model over a whole sequence, outside vLLM's batch.

Layer by layer, rows in fixed chunks: only one layer's attention keys are live at a time, and
chunk bounds do not depend on load, so the same prompt gives bit-identical states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from qm_vllm.compress import AttentionError, QueryAttention
from qm_vllm.engine.adapters.decoder import DecoderView
from qm_vllm.engine.dense_attention import DenseAttention, choose_backend
from qm_vllm.engine.fused_ops import rotary_forward, rotary_table


class _RotaryTap(nn.Module):
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


class _AttentionTap(nn.Module):
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
        if record.values is not None:
            record.values[self.start : stop] = value
        if record.rotated_keys is not None:
            record.rotated_keys[self.start : stop] = key
        if record.queries is not None:
            first = self.num_tokens - record.queries.shape[0]
            if stop > first:
                low = max(first, self.start)
                record.queries[low - first : stop - first] = query[low - self.start :]
        out = self.attention.attend(query, key, value, self.start)
        return out.reshape(rows, heads * size)


class Stream:
    """Residual stream of a sequence between two layers; both tensors [N, D]."""

    def __init__(self, states: torch.Tensor) -> None:
        self.hidden = states
        self.residual: torch.Tensor | None = None
        self.attention: DenseAttention | None = None
        """Scratch of the layer that runs; its own, so that streams may alternate."""

    @property
    def states(self) -> torch.Tensor:
        """The states that the next layer reads: [N, D]."""
        return self.hidden if self.residual is None else self.hidden + self.residual


class LayerRecord:
    """What one layer leaves behind: [N, KVH, D] keys and values, [W, H, D] last queries."""

    def __init__(self) -> None:
        self.plain_keys: torch.Tensor | None = None
        self.rotated_keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self.queries: torch.Tensor | None = None


class DenseRunner:
    """Drives :class:`DecoderView` layers."""

    def __init__(
        self, view: DecoderView, dtype: torch.dtype, device: torch.device, chunk_tokens: int
    ) -> None:
        self.view, self.dtype, self.device, self.chunk = view, dtype, device, chunk_tokens

    def embed(self, token_ids: list[int]) -> torch.Tensor:
        """Token embeddings [N, D] of the served model."""
        return self.view.embed(torch.tensor(token_ids, dtype=torch.long, device=self.device))

    def record_for(
        self, layer: int, num_tokens: int, *, plain_keys: bool, rotated_keys: bool, values: bool,
        num_queries: int = 0,
    ) -> LayerRecord:
        """Empty buffers for what :meth:`run_layer` shall capture."""
        attn = self.view.layers[layer].attn
        record = LayerRecord()

        def buffer(rows: int, heads: int) -> torch.Tensor:
            return torch.empty((rows, heads, attn.head_size), dtype=self.dtype, device=self.device)

        if plain_keys:
            record.plain_keys = buffer(num_tokens, attn.num_kv_heads)
        if rotated_keys:
            record.rotated_keys = buffer(num_tokens, attn.num_kv_heads)
        if values:
            record.values = buffer(num_tokens, attn.num_kv_heads)
        if num_queries:
            record.queries = buffer(min(num_queries, num_tokens), attn.num_heads)
        return record

    def run_layer(
        self, layer: int, stream: Stream, record: LayerRecord, table: torch.Tensor | None = None
    ) -> Iterator[int]:
        """Run one layer over all rows of ``stream``, in place; yields the rows of each chunk.

        Rows sit at positions 0..N-1, or at those of a ``table`` from :meth:`place`.
        """
        view = self.view.layers[layer]
        hidden, residual = stream.hidden, stream.residual
        rest = torch.empty_like(hidden) if residual is None else residual
        num_tokens = hidden.shape[0]
        rotary = _RotaryTap(
            rotary_forward(view.rotary, self.device, table), record.plain_keys
        )
        if stream.attention is None:
            first = self.view.layers[0].attn
            stream.attention = choose_backend(first, self.dtype, self.device)
        attn = _AttentionTap(stream.attention, view.attn, num_tokens, record)
        stream.attention.begin(num_tokens, view.sliding_window)
        for start in range(0, num_tokens, self.chunk):
            stop = min(start + self.chunk, num_tokens)
            rotary.start = attn.start = start
            positions = torch.arange(start, stop, device=self.device)
            with view.borrowed(attn, rotary):
                out, added = view.run(
                    positions, hidden[start:stop], None if residual is None else rest[start:stop]
                )
            # ``added`` may alias the rows of ``hidden``: copy it before they are overwritten.
            rest[start:stop] = added
            hidden[start:stop] = out
            yield stop - start
        stream.residual = rest

    def place(self, positions: torch.Tensor) -> torch.Tensor | None:
        """Table for :meth:`run_layer` and :meth:`rotate` that puts rows at these positions [K].

        None where the model's rotary embedding has no plain table of angles, or its layers do
        not share one.
        """
        rotary = [view.rotary for view in self.view.layers]
        shared = all(one is rotary[0] for one in rotary)
        return rotary_table(rotary[0], positions) if shared else None

    def can_place(self) -> bool:
        """Whether kept tokens can stay at their distances, as far as this decoder is injected."""
        sliding = any(view.sliding_window is not None for view in self.view.layers)
        return sliding or self.place(torch.zeros(1, dtype=torch.long)) is not None

    def rotate(
        self, layer: int, keys: torch.Tensor, table: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Rotary embedding of plain ``keys`` [K, KVH, D], at positions 0..K-1 or the table's."""
        flat = keys.reshape(keys.shape[0], -1).clone()
        positions = torch.arange(keys.shape[0], device=self.device)
        rotary = rotary_forward(self.view.layers[layer].rotary, self.device, table)
        _, rotated = rotary(positions, flat.clone(), flat)
        return rotated.reshape(keys.shape)

    def window_layers(self, depth: int, count: int) -> list[int]:
        """The last ``count`` layers below ``depth`` whose queries see the whole prompt."""
        whole = [i for i in range(depth) if self.view.layers[i].sliding_window is None]
        return whole[-count:]

    def window_attention(self, layer: int, record: LayerRecord) -> QueryAttention:
        """What the recorded last queries look at, over the heads of all ranks."""
        parts = [QueryAttention.of(weights) for weights, _ in self._window(layer, record)]
        return over_ranks(QueryAttention.joined(parts))

    def attention_error(
        self, layer: int, record: LayerRecord, order: torch.Tensor, sizes: list[int]
    ) -> AttentionError:
        """What those queries would miss if only the first tokens of ``order`` stayed.

        Args:
            order: int64 [N]. sizes: increasing numbers of kept tokens.
        """
        assert record.values is not None
        parts = [
            AttentionError.of(weights, record.values[None, :, head], order, sizes)
            for weights, head in self._window(layer, record)
        ]
        return AttentionError.joined(parts)

    def _window(self, layer: int, record: LayerRecord) -> Iterator[tuple[torch.Tensor, int]]:
        """Softmax weights [H / KVH, W, N] of the recorded queries, one KV head after another."""
        assert record.queries is not None
        assert record.rotated_keys is not None
        attn = self.view.layers[layer].attn
        queries, keys = record.queries.float(), record.rotated_keys.float()
        window, num_tokens = queries.shape[0], keys.shape[0]
        grouped = queries.reshape(window, attn.num_kv_heads, -1, attn.head_size)
        future = torch.ones(window, num_tokens, dtype=torch.bool, device=keys.device)
        future = future.triu(num_tokens - window + 1)
        for head in range(attn.num_kv_heads):
            logits = torch.einsum("wgd,nd->gwn", grouped[:, head], keys[:, head])
            logits = (logits * float(attn.impl.scale)).masked_fill_(future, float("-inf"))
            yield logits.softmax(-1), head


def over_ranks(part: QueryAttention) -> QueryAttention:
    """The same over the heads of all tensor-parallel ranks, equal on each of them."""
    gathered = gather_rows(torch.stack((part.recent, part.question, part.energy)))
    return QueryAttention.joined([QueryAttention(*ranks) for ranks in gathered.split(3)])


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows of all tensor-parallel ranks, one rank's after another's: [ranks * R, ...]."""
    from vllm.distributed import (
        get_tensor_model_parallel_world_size,
        tensor_model_parallel_all_gather,
    )

    if get_tensor_model_parallel_world_size() == 1:
        return rows
    gathered: torch.Tensor = tensor_model_parallel_all_gather(rows, dim=0)
    return gathered


@torch.inference_mode()
def self_check(runner: DenseRunner, num_tokens: int = 64) -> str | None:
    """Run the first layers over a few tokens in two chunkings; the states must agree.

    Returns:
        None, or a sentence that says what is wrong with the dense pass on this machine.
    """
    chunk, states = runner.chunk, []
    try:
        for rows in (num_tokens, 24):
            runner.chunk = rows
            stream = Stream(runner.embed(list(range(1, num_tokens + 1))))
            for layer in range(min(2, len(runner.view.layers))):
                for _ in runner.run_layer(layer, stream, LayerRecord()):
                    pass
            states.append(stream.states.float())
    except Exception as problem:
        return f"the dense pass fails on this model: {type(problem).__name__}: {problem}"
    finally:
        runner.chunk = chunk
    error = float((states[0] - states[1]).norm() / states[0].norm())
    limit = 1e-4 if runner.dtype == torch.float32 else 3e-2
    if not error <= limit:
        return f"the dense pass depends on its chunk size (relative error {error:.1e})"
    return None
