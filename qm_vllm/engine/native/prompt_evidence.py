"""What a prompt that vLLM prefilled shows of its tokens, over all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from qm_vllm.compress import Evidence, QueryAttention, standing_out, window_attention
from qm_vllm.engine.agreement import gather, over_ranks
from qm_vllm.engine.memory import AT_ONCE
from qm_vllm.engine.native.layers import NativeLayer
from qm_vllm_patches.kv_cache import PagedCache


def of_age(count: int, device: torch.device) -> Evidence:
    """Where all layers have sliding windows: the newest stay in any case."""
    age = torch.arange(1, count + 1, device=device) / count
    return Evidence(count, attention=[QueryAttention(age, age, age.square())], leverage=age)


def of_queries(
    queries: Mapping[str, torch.Tensor], layers: Sequence[NativeLayer], cache: PagedCache,
    source: Sequence[torch.Tensor], count: int, rows: int,
) -> Evidence:
    """What the last queries see of the prompt.

    Args:
        queries: [W, H, D] of scored layers, by their names.
        source: ids of the blocks of what was read, of each KV-cache group.
        count: N, tokens of the prompt. rows: those that were read, a hint's included.
    """
    seen = []
    for one in layers:
        attn = one.layer.attn
        if attn.name in queries:
            keys = cache.keys(one.layer.module, source[one.layer.group], rows)
            look = window_attention(queries[attn.name], keys, attn.scale, AT_ONCE, attn.soft_cap)
            seen.append(look.of_rows(slice(count)))
    return Evidence(count, attention=[over_ranks(seen)])


def of_keys(
    layers: Sequence[NativeLayer], cache: PagedCache, source: Sequence[torch.Tensor], count: int,
    device: torch.device,
) -> Evidence:
    """What stands out among the keys of heads that look things up.

    Args:
        source, count: as of :func:`of_queries`.
    """
    def own() -> torch.Tensor:
        total = torch.zeros(count, device=device)
        for one in layers:
            if one.habits is not None and one.habits.finders.numel():
                rows = cache.read(one.layer.module, source[one.layer.group], count)
                total += standing_out(*rows, one.habits.finders)
        return total[None]

    return Evidence(count, leverage=gather(own).sum(0))
