"""Attention kernels of vLLM that run outside its own batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

SCALES = {"k_scale": 1.0, "v_scale": 1.0, "kv_cache_dtype": "auto"}


@dataclass(frozen=True, eq=False)
class CpuAttention:
    """vLLM's CPU kernel over a cache of contiguous blocks.

    Attributes:
        isa: the instruction set that the kernel would use for the shape.
        store, plan, attend: its three steps.
    """

    isa: str
    store: Callable[..., Any]
    plan: Callable[..., Any]
    attend: Callable[..., Any]

    @classmethod
    def of(cls, dtype: torch.dtype, block_size: int, head_size: int) -> CpuAttention:
        """Raises ImportError or AttributeError where this build has no such kernel."""
        from vllm._custom_ops import (
            cpu_attention_with_kv_cache,
            cpu_attn_get_scheduler_metadata,
            cpu_attn_reshape_and_cache,
        )
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

        return cls(
            _get_attn_isa(dtype, block_size, head_size), cpu_attn_reshape_and_cache,
            cpu_attn_get_scheduler_metadata, cpu_attention_with_kv_cache,
        )

    def append(
        self, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write rows; arguments as of :meth:`run`. Returns the cache's keys and its values."""
        key_cache, value_cache = cache.chunk(2, dim=2)
        self.store(key, value, key_cache, value_cache, slots, self.isa, **SCALES)
        return key_cache, value_cache

    def run(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor,
        *, slots: torch.Tensor, sizes: Sequence[int], bounds: Sequence[int], table: torch.Tensor,
        scale: float, window: int,
    ) -> torch.Tensor:
        """Append rows to the cache and attend, causal, bottom-right aligned.

        Args:
            query: [C, H, D]. key, value: [C, KVH, D].
            cache: [blocks, KVH, 2 * block_size, D].
            slots: of each row. sizes: keys that each prompt has so far.
            bounds: prompt i has the rows ``[bounds[i], bounds[i + 1])``.
            table: blocks of each prompt, int32 [prompts, blocks of the longest].
            window: newest positions that a query sees; -1: all.
        """
        key_cache, value_cache = self.append(key, value, cache, slots)
        lengths = torch.tensor(sizes, dtype=torch.int32)
        starts = torch.tensor(bounds, dtype=torch.int32)
        plan = self.plan(
            num_reqs=len(sizes), num_heads=query.shape[1], num_kv_heads=key.shape[1],
            head_dim=query.shape[2], seq_lens=lengths, dtype=query.dtype, query_start_loc=starts,
            causal=True, sliding_window_size=window, isa=self.isa, enable_kv_split=False,
            dynamic_causal=None, kv_cache_dtype="auto",
        )
        out = torch.empty_like(query)
        self.attend(
            query=query, key_cache=key_cache, value_cache=value_cache, output=out,
            query_start_loc=starts, seq_lens=lengths, scale=scale, causal=True,
            alibi_slopes=None, sliding_window=window, block_table=table, softcap=0,
            scheduler_metadata=plan, s_aux=None, dynamic_causal=None, **SCALES,
        )
        return out


def flash_varlen(head_size: int) -> tuple[Callable[..., torch.Tensor], int | None]:
    """vLLM's FlashAttention over ragged batches, and its version for this head size.

    Raises ImportError where this build has none.
    """
    from vllm.v1.attention.backends.fa_utils import get_flash_attn_version
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func, get_flash_attn_version(head_size=head_size)
