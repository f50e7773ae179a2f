"""Dense attention on a CPU: torch's flash kernel, and vLLM's own over contiguous blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from qm_vllm.engine.dense.sdpa_attention import SdpaAttention
from qm_vllm_patches.kernels import CpuAttention

SCRATCH_BLOCK = 128


class CpuFlashAttention(SdpaAttention):
    """torch's flash kernel for CPUs: 1.6 to 2.3 times as fast as vLLM's kernel without matrix
    units (docs/decisions.md). Keys before the chunk and within it are two calls, joined by their
    log-sum-exps; a window of keys goes the base class's way."""

    def __init__(self, attn: Any, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(attn, dtype, device)
        self.function = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def _causal(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        if self.window:
            return super()._causal(query, keys, values)
        start = keys.shape[0] - query.shape[0]
        out, mass = self._flash(query, keys[start:], values[start:], causal=True)
        if start:
            before, more = self._flash(query, keys[:start], values[:start], causal=False)
            share = torch.sigmoid(more - mass)[..., None]
            out = out.float().lerp(before.float(), share).to(out.dtype)
        return out[0].transpose(0, 1)

    def _flash(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, causal: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output [1, H, C, D] and log-sum-exp [1, H, C] float32."""
        parts = (x.transpose(0, 1)[None] for x in (query, keys, values))
        out, mass = self.function(*parts, 0.0, causal, scale=self.scale)
        return out, mass


@dataclass(frozen=True, eq=False)
class Places:
    """Where the rows of one call lie in the scratch.

    Attributes:
        slots: of each row.
        sizes: keys that each prompt has so far.
        bounds: prompt i has the call's rows ``[bounds[i], bounds[i + 1])``.
        table: blocks of each prompt, int32 [prompts, blocks of the longest].
    """

    slots: torch.Tensor
    sizes: Sequence[int]
    bounds: Sequence[int]
    table: torch.Tensor

    @classmethod
    def of(cls, bounds: Sequence[int]) -> Places:
        """Several whole prompts, each from a block of its own on."""
        sizes = [stop - start for start, stop in pairwise(bounds)]
        needed = [-(-size // SCRATCH_BLOCK) for size in sizes]
        slots, table = [], torch.zeros(len(sizes), max(needed), dtype=torch.int32)
        first = 0
        for row, size, count in zip(table, sizes, needed, strict=True):
            slots.append(torch.arange(size) + first * SCRATCH_BLOCK)
            row[:count] = torch.arange(first, first + count)
            first += count
        return cls(torch.cat(slots), sizes, bounds, table)


class CpuKernelAttention:
    """vLLM's own CPU kernel, so that numbers equal those of a plain prefill."""

    def __init__(self, attn: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.kernel = CpuAttention.of(dtype, SCRATCH_BLOCK, attn.head_size)
        self.isa = self.kernel.isa
        self.scale, self.dtype = attn.scale, dtype
        self.num_kv_heads, self.head_size = attn.num_kv_heads, attn.head_size
        self.cache = torch.empty(0)
        self.places: Places | None = None

    def begin(
        self, num_tokens: int, sliding_window: int | None = None,
        keys: torch.Tensor | None = None, values: torch.Tensor | None = None,
        prompts: int = 1,
    ) -> None:
        self.keys, self.values = keys, values
        self.window = -1 if sliding_window is None else sliding_window
        blocks = -(-num_tokens // SCRATCH_BLOCK) + prompts - 1  # each prompt begins a block
        if self.cache.shape[0] != blocks:
            shape = (blocks, self.num_kv_heads, 2 * SCRATCH_BLOCK, self.head_size)
            self.cache = torch.zeros(shape, dtype=self.dtype)
            self.table = torch.arange(blocks, dtype=torch.int32)[None]

    def precede(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._want(keys, values, 0)
        self.kernel.append(keys, values, self.cache, torch.arange(keys.shape[0]))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int
    ) -> torch.Tensor:
        stop = start + query.shape[0]
        places = Places(torch.arange(start, stop), [stop], [0, stop - start], self.table)
        return self._run(query, key, value, start, places)

    def attend_prompts(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Sequence[int]
    ) -> torch.Tensor:
        if self.places is None or self.places.bounds != bounds:  # else as in the layer before
            self.places = Places.of(bounds)
        return self._run(query, key, value, 0, self.places)

    def _run(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int,
        places: Places,
    ) -> torch.Tensor:
        """Append the rows, which the caller wants from ``start`` on, and attend."""
        self._want(key, value, start)
        return self.kernel.run(
            query, key, value, self.cache, slots=places.slots, sizes=places.sizes,
            bounds=places.bounds, table=places.table, scale=self.scale, window=self.window,
        )

    def _want(self, key: torch.Tensor, value: torch.Tensor, start: int) -> None:
        for wanted, part in ((self.keys, key), (self.values, value)):
            if wanted is not None:
                wanted[start : start + part.shape[0]] = part
