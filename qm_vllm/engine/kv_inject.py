"""Writes keys and values into the paged KV cache with the attention backend's own update."""

from __future__ import annotations

from typing import Any

import torch

from qm_vllm.engine.upload import upload


def slot_mapping(
    block_ids: list[int], block_size: int, start: int, stop: int, device: torch.device
) -> torch.Tensor:
    """Cache slots of positions ``[start, stop)`` of a request that owns ``block_ids``: int64."""
    positions = torch.arange(start, stop)
    blocks = torch.tensor(block_ids, dtype=torch.long)[positions // block_size]
    return upload(blocks * block_size + positions % block_size, device)


def write_kv(
    layers: list[tuple[Any, torch.Tensor]],
    artifact: list[tuple[torch.Tensor, torch.Tensor]],
    slots: torch.Tensor,
    start: int,
) -> None:
    """Write artefact rows ``[start, start + len(slots))`` of every layer.

    Args:
        layers: vLLM attention layer and its KV cache, in model order.
        artifact: keys and values [K - 1, KVH, D] per layer, same order.
        slots: cache slots, int64.
        start: first artefact row.
    """
    stop = start + slots.shape[0]
    for (attn, cache), (keys, values) in zip(layers, artifact, strict=True):
        attn.impl.do_kv_cache_update(attn, keys[start:stop], values[start:stop], cache, slots)
