"""Causal attention over one layer's contiguous keys, queries in chunks (bottom-right aligned).

On CUDA vLLM's FlashAttention. On CPU vLLM's kernel over a scratch of contiguous blocks where it
uses matrix units, torch's flash kernel where it does not. Elsewhere torch's scaled dot product.
All take the chunk ``[start, stop)`` of queries and attend to keys ``[0, stop)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from qm_vllm.engine.upload import upload

SCRATCH_BLOCK = 128
NO_MATRIX_UNITS = ("vec", "vec16")
"""Names of vLLM's CPU kernels that are made of vector instructions alone."""


class DenseAttention(Protocol):
    """Attention of one layer at a time; :meth:`begin` forgets the layer before."""

    def begin(
        self, num_tokens: int, sliding_window: int | None = None,
        keys: torch.Tensor | None = None, values: torch.Tensor | None = None,
        prompts: int = 1,
    ) -> None:
        """Start a layer of ``num_tokens`` rows, whose queries see so many newest positions.

        Args:
            keys, values: [N, KVH, D] that the caller wants filled with what it will hand to
                :meth:`attend`.
            prompts: how many the rows belong to; beyond one, :meth:`attend_prompts` follows.
        """

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int
    ) -> torch.Tensor:
        """Append the chunk's ``key``/``value`` [C, KVH, D] at ``start`` and attend.

        Args:
            query: [C, H, D]; row i sits at position ``start + i``.

        Returns:
            [C, H, D].
        """
        ...

    def attend_prompts(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Sequence[int]
    ) -> torch.Tensor:
        """All rows of several prompts at once; each attends to its own prompt.

        Args:
            query: [N, H, D]. key, value: [N, KVH, D].
            bounds: prompt i has rows ``[bounds[i], bounds[i + 1])``.

        Returns:
            [N, H, D].
        """
        ...


class SdpaAttention:
    """torch's scaled dot product: works everywhere, the reference for the others."""

    def __init__(self, attn: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.scale = float(attn.impl.scale)
        self.num_kv_heads, self.head_size = attn.num_kv_heads, attn.head_size
        self.dtype, self.device = dtype, device

    def begin(
        self, num_tokens: int, sliding_window: int | None = None,
        keys: torch.Tensor | None = None, values: torch.Tensor | None = None,
        prompts: int = 1,
    ) -> None:
        self.window = sliding_window
        shape = (num_tokens, self.num_kv_heads, self.head_size)

        def scratch() -> torch.Tensor:
            return torch.empty(shape, dtype=self.dtype, device=self.device)

        self.keys = scratch() if keys is None else keys
        self.values = scratch() if values is None else values

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int
    ) -> torch.Tensor:
        stop = start + query.shape[0]
        self.keys[start:stop], self.values[start:stop] = key, value
        return self._causal(query, self.keys[:stop], self.values[:stop])

    def attend_prompts(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Sequence[int]
    ) -> torch.Tensor:
        self.keys[:], self.values[:] = key, value
        return torch.cat([
            self._causal(query[low:high], self.keys[low:high], self.values[low:high])
            for low, high in pairwise(bounds)
        ])

    def _causal(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """The last positions of the keys attend."""
        rows, stop = query.shape[0], keys.shape[0]
        start, mask = stop - rows, None
        if start or self.window:
            mask = torch.ones(rows, stop, dtype=torch.bool, device=query.device)
            mask = mask.tril(start)
        if self.window and mask is not None:
            mask = mask.triu(start - self.window + 1)
        out = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.scale,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1)


class CpuFlashAttention(SdpaAttention):
    """torch's flash kernel for CPUs: 1.6 to 2.3 times as fast as vLLM's kernel without matrix
    units (docs/decisions.md). Keys before the chunk and within it are two calls, joined by their
    log-sum-exps; a window of keys goes the base class's way."""

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
        found: tuple[torch.Tensor, torch.Tensor] = (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *parts, 0.0, causal, scale=self.scale
            )
        )
        return found


class CpuKernelAttention:
    """vLLM's own CPU kernel, so that numbers equal those of a plain prefill."""

    def __init__(self, attn: Any, dtype: torch.dtype, device: torch.device) -> None:
        from vllm import _custom_ops
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

        self.ops = _custom_ops
        self.scale = float(attn.impl.scale)
        self.num_heads, self.num_kv_heads = attn.num_heads, attn.num_kv_heads
        self.head_size, self.dtype = attn.head_size, dtype
        self.isa = _get_attn_isa(dtype, SCRATCH_BLOCK, self.head_size)
        self.cache = torch.empty(0)

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
        self.key_cache, self.value_cache = self.cache.chunk(2, dim=2)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int
    ) -> torch.Tensor:
        rows = query.shape[0]
        for wanted, part in ((self.keys, key), (self.values, value)):
            if wanted is not None:
                wanted[start : start + rows] = part
        slots = torch.arange(start, start + rows)
        return self._run(query, key, value, slots, [start + rows], [0, rows], self.table)

    def attend_prompts(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Sequence[int]
    ) -> torch.Tensor:
        for wanted, part in ((self.keys, key), (self.values, value)):
            if wanted is not None:
                wanted[:] = part
        sizes = [stop - start for start, stop in pairwise(bounds)]
        needed = [-(-size // SCRATCH_BLOCK) for size in sizes]
        firsts = [0, *accumulate(needed)]
        slots = torch.cat([
            torch.arange(size) + first * SCRATCH_BLOCK
            for size, first in zip(sizes, firsts, strict=False)
        ])
        table = torch.zeros(len(sizes), max(needed), dtype=torch.int32)
        for row, first, count in zip(table, firsts, needed, strict=False):
            row[:count] = torch.arange(first, first + count)
        return self._run(query, key, value, slots, sizes, bounds, table)

    def _run(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor,
        sizes: Sequence[int], bounds: Sequence[int], table: torch.Tensor,
    ) -> torch.Tensor:
        """Append at ``slots``, then let each prompt's queries see its ``sizes`` first keys."""
        scales = {"k_scale": 1.0, "v_scale": 1.0, "kv_cache_dtype": "auto"}
        self.ops.cpu_attn_reshape_and_cache(
            key, value, self.key_cache, self.value_cache,
            slots, self.isa, **scales,
        )
        lengths = torch.tensor(sizes, dtype=torch.int32)
        starts = torch.tensor(bounds, dtype=torch.int32)
        plan = self.ops.cpu_attn_get_scheduler_metadata(
            num_reqs=len(sizes), num_heads=self.num_heads, num_kv_heads=self.num_kv_heads,
            head_dim=self.head_size, seq_lens=lengths, dtype=self.dtype, query_start_loc=starts,
            causal=True, sliding_window_size=self.window, isa=self.isa, enable_kv_split=False,
            dynamic_causal=None, kv_cache_dtype="auto",
        )
        out = torch.empty_like(query)
        self.ops.cpu_attention_with_kv_cache(
            query=query, key_cache=self.key_cache, value_cache=self.value_cache, output=out,
            query_start_loc=starts, seq_lens=lengths, scale=self.scale, causal=True,
            alibi_slopes=None, sliding_window=self.window, block_table=table, softcap=0,
            scheduler_metadata=plan, s_aux=None, dynamic_causal=None, **scales,
        )
        return out


class FlashVarlenAttention(SdpaAttention):
    """vLLM's FlashAttention on CUDA; its causal mask is bottom-right aligned."""

    def __init__(self, attn: Any, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(attn, dtype, device)
        from vllm.v1.attention.backends.fa_utils import get_flash_attn_version
        from vllm.vllm_flash_attn import flash_attn_varlen_func

        self.function = flash_attn_varlen_func
        self.bounds: dict[tuple[int, ...], torch.Tensor] = {}
        self.version = get_flash_attn_version(head_size=attn.head_size)
        if self.version is None:
            raise NotImplementedError("no FlashAttention for this head size")

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int
    ) -> torch.Tensor:
        rows = query.shape[0]
        stop = start + rows
        self.keys[start:stop], self.values[start:stop] = key, value
        return self._flash(query, self.keys[:stop], self.values[:stop], (0, rows), (0, stop))

    def attend_prompts(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Sequence[int]
    ) -> torch.Tensor:
        self.keys[:], self.values[:] = key, value
        return self._flash(query, self.keys, self.values, tuple(bounds), tuple(bounds))

    def _flash(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
        queries_at: tuple[int, ...], keys_at: tuple[int, ...],
    ) -> torch.Tensor:
        longest = [max(b - a for a, b in pairwise(at)) for at in (queries_at, keys_at)]
        return self.function(  # type: ignore[no-any-return]
            q=query, k=keys, v=values,
            cu_seqlens_q=self._on_device(queries_at), cu_seqlens_k=self._on_device(keys_at),
            max_seqlen_q=longest[0], max_seqlen_k=longest[1], softmax_scale=self.scale,
            causal=True, fa_version=self.version,
            window_size=None if self.window is None else [self.window - 1, 0],
        )

    def _on_device(self, bounds: tuple[int, ...]) -> torch.Tensor:
        """The bounds on the device, sent once and not waited for."""
        if bounds not in self.bounds:
            self.bounds[bounds] = upload(torch.tensor(bounds, dtype=torch.int32), self.device)
        return self.bounds[bounds]


def choose_backend(attn: Any, dtype: torch.dtype, device: torch.device) -> DenseAttention:
    """The best backend that this machine has for the layer's shape."""
    half = dtype in (torch.float16, torch.bfloat16)
    try:
        if device.type == "cpu":
            kernel = CpuKernelAttention(attn, dtype, device)
            plain = kernel.isa in NO_MATRIX_UNITS
            return CpuFlashAttention(attn, dtype, device) if plain else kernel
        if device.type == "cuda" and half and attn.head_size <= 256:
            return FlashVarlenAttention(attn, dtype, device)
    except (ImportError, AttributeError, NotImplementedError):
        pass
    return SdpaAttention(attn, dtype, device)
