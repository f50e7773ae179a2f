"""Runs decoder layers of the served model over a whole sequence, outside vLLM's batch.

Layer by layer, rows in fixed chunks: only one layer's attention keys are live at a time, and
chunk bounds do not depend on load, so the same prompt gives bit-identical states.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch

from qm_vllm.compress import AttentionError, QueryAttention, window_attention, window_weights
from qm_vllm.engine.dense.attention import DenseAttention, choose_backend
from qm_vllm.engine.dense.taps import AttentionTap, LayerRecord, RotaryTap, Sink
from qm_vllm.engine.memory import AT_ONCE
from qm_vllm.engine.upload import upload
from qm_vllm_patches.decoder import DecoderView
from qm_vllm_patches.fused_ops import positions_of, rotary_forward, rotary_table


class Stream:
    """States between two layers: [N, D].

    Residual and hidden part of vLLM's layers are added up after each, which is what the next layer
    would begin with: one tensor of N rows instead of two.

    Args:
        bounds: where the rows hold several prompts, prompt i has ``[bounds[i], bounds[i + 1])``.
    """

    def __init__(self, states: torch.Tensor, bounds: Sequence[int] | None = None) -> None:
        self.states = states
        self.bounds = [0, states.shape[0]] if bounds is None else bounds
        self.places: torch.Tensor | None = None
        """Positions of the rows of several prompts: [N]."""
        self.attention: DenseAttention | None = None
        """Scratch of the layer that runs; its own, so that streams may alternate."""


class DenseRunner:
    """Drives :class:`DecoderView` layers.

    Attributes:
        around: what layers that look around in a forward context of vLLM run in, by their rows.
    """

    def __init__(
        self, view: DecoderView, dtype: torch.dtype, device: torch.device, chunk_tokens: int
    ) -> None:
        self.view, self.dtype, self.device, self.chunk = view, dtype, device, chunk_tokens
        self.around: Callable[[int], AbstractContextManager[None]] = lambda _: nullcontext()

    def embed(self, token_ids: list[int]) -> torch.Tensor:
        """Token embeddings [N, D] of the served model."""
        ids = torch.frombuffer(array("q", token_ids), dtype=torch.long)
        return self.view.embed(upload(ids, self.device))

    def record_for(
        self, layer: int, bounds: Sequence[int], *, rotated_keys: bool = False,
        values: bool = False, num_queries: int = 0, sink: Sink | None = None, before: int = 0,
    ) -> LayerRecord:
        """Empty buffers for what :meth:`run_layer` shall capture of a :class:`Stream`.

        Args:
            before: how many rows stand before it.
        """
        attn, num_tokens = self.view.layers[layer].attn, before + bounds[-1]
        record = LayerRecord(num_queries, sink)

        def buffer(rows: int, heads: int) -> torch.Tensor:
            return torch.empty((rows, heads, attn.head_size), dtype=self.dtype, device=self.device)

        if rotated_keys:
            record.rotated_keys = buffer(num_tokens, attn.num_kv_heads)
        if values:
            record.values = buffer(num_tokens, attn.num_kv_heads)
        if num_queries:
            rows = sum(min(num_queries, stop - start) for start, stop in pairwise(bounds))
            record.queries = buffer(rows, attn.num_heads)
        return record

    def run_layer(
        self, layer: int, stream: Stream, record: LayerRecord, table: torch.Tensor | None = None,
        before: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> Iterator[int]:
        """Run one layer over all rows of ``stream``, in place; yields the rows of each chunk.

        Rows sit at positions 0..N-1 of their prompt, or at those of a ``table`` from
        :meth:`place`. Several prompts are one chunk.

        Args:
            before: keys, turned, and values [P, KVH, D] of rows that the stream's see before them;
                without a table these are at P..P+N-1 then. One prompt alone.
        """
        view, states = self.view.layers[layer], stream.states
        num_tokens, prompts = states.shape[0], len(stream.bounds) - 1
        chunk = self.chunk if prompts == 1 else num_tokens
        rotary = None if view.rotary is None else RotaryTap(
            rotary_forward(view.rotary, self.device, table), keep=record.sink is not None
        )
        if stream.attention is None:
            first = self.view.layers[0].attn
            stream.attention = choose_backend(first, self.dtype, self.device)
        ahead = 0 if before is None else before[0].shape[0]
        attn = AttentionTap(stream.attention, view.attn, stream.bounds, record, rotary, ahead)
        stream.attention.begin(
            ahead + num_tokens, view.sliding_window, record.rotated_keys, record.values, prompts
        )
        if before is not None:
            stream.attention.precede(*before)
        moved = ahead if table is None else 0
        for start in range(0, num_tokens, chunk):
            stop = min(start + chunk, num_tokens)
            attn.start = start
            positions = self._positions(stream, start, stop, moved)
            attn.turns = positions if view.late else None
            with self.around(stop - start), view.borrowed(attn, rotary):
                out, added = view.run(positions, states[start:stop])
            if attn.failure is not None:
                raise attn.failure
            if added is None:
                states[start:stop] = out
            else:  # it may alias these rows, which is no matter: each is read before it is written
                torch.add(out, added, out=states[start:stop])
            yield stop - start

    def _positions(self, stream: Stream, start: int, stop: int, moved: int) -> torch.Tensor:
        """Of the rows ``[start, stop)``, each counted from its prompt's first, which is at
        ``moved``."""
        if len(stream.bounds) == 2:
            return torch.arange(moved + start, moved + stop, device=self.device)
        if stream.places is None:
            own = [torch.arange(high - low) for low, high in pairwise(stream.bounds)]
            stream.places = upload(torch.cat(own), self.device)
        return stream.places[start:stop]

    def place(self, positions: torch.Tensor) -> torch.Tensor | None:
        """Table for :meth:`run_layer` and :meth:`rotate` that puts rows at these positions [K].

        None where the model's rotary embedding has no plain table of angles, or its layers do
        not share one.
        """
        rotary = [view.rotary for view in self.view.layers if view.rotary is not None]
        shared = rotary and all(one is rotary[0] for one in rotary)
        return rotary_table(rotary[0], positions) if shared else None

    @property
    def reach(self) -> int | None:
        """How many positions all of the layers' tables of angles know; None: they have none."""
        known = [positions_of(view.rotary) for view in self.view.layers]
        return min((count for count in known if count is not None), default=None)

    def rotate(
        self, layer: int, keys: torch.Tensor, table: torch.Tensor | None = None, *,
        start: int = 0,
    ) -> torch.Tensor:
        """Keys [R, KVH, D] of one layer, rotated: to positions from ``start`` on, or to the
        table's. Those of a layer that positions do not turn stay as they are."""
        if self.view.layers[layer].rotary is None:
            return keys
        start = 0 if table is not None else start
        places = torch.arange(start, start + keys.shape[0], device=self.device)
        forward = rotary_forward(self.view.layers[layer].rotary, self.device, table)
        rotated, _ = forward(places, keys.flatten(1).clone(), None)
        return rotated.view(keys.shape)  # type: ignore[no-any-return]

    def window_layers(self, depth: int, count: int) -> list[int]:
        """The last ``count`` layers below ``depth`` whose queries see the whole prompt."""
        whole = [i for i in range(depth) if self.view.layers[i].sliding_window is None]
        return whole[-count:]

    def window_attention(self, layer: int, record: LayerRecord) -> QueryAttention:
        """What the recorded last queries look at, over the heads of this rank."""
        return window_attention(*self._seen(layer, record))

    def attention_error(
        self, layer: int, record: LayerRecord, order: torch.Tensor, sizes: list[int]
    ) -> AttentionError:
        """What those queries would miss if only the first tokens of ``order`` stayed.

        Args:
            order: int64 [N]. sizes: increasing numbers of kept tokens.
        """
        assert record.values is not None
        values = record.values.transpose(0, 1)
        parts = [
            AttentionError.of(weights, values[heads], order, sizes)
            for weights, heads in window_weights(*self._seen(layer, record))
        ]
        return AttentionError.joined(parts)

    def _seen(
        self, layer: int, record: LayerRecord
    ) -> tuple[torch.Tensor, torch.Tensor, float, int]:
        """The recorded queries and the keys, as ``window_weights`` takes them."""
        assert record.queries is not None
        assert record.rotated_keys is not None
        scale = self.view.layers[layer].attn.scale
        return record.queries, record.rotated_keys, scale, AT_ONCE
