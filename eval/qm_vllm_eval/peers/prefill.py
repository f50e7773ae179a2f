"""One plain run of a model over a prompt, and what a press leaves of its keys and values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

KV = list[tuple[Tensor, Tensor]]  # per layer keys and values [1, KVH, T, d], keys rotated


@dataclass
class Prefill:
    """One plain run of the model over a prompt, with what a press is given.

    Attributes:
        ids: [1, N].
        kv: per layer.
        calls: per layer the keyword arguments of its attention, and its attention weights.
        scores: what a kind of press found out once for every K, and the seconds that took.
    """

    ids: Tensor
    kv: KV
    calls: list[tuple[dict[str, Any], Tensor | None]]
    scores: dict[type, tuple[Tensor, float]] = field(default_factory=dict)


@dataclass
class Kept:
    """What a press left of a prompt.

    Attributes:
        kv: per layer.
        heads: per layer [KVH], how many entries each head kept, the last ones of ``kv``; None:
            all of them.
        reused_seconds: of work for another K that this one did not repeat.
    """

    kv: KV
    heads: list[Tensor] | None = None
    reused_seconds: float = 0.0


def plain_prefill(model: Any, ids: list[int]) -> Prefill:
    """Run the model's layers over token ids without any press."""
    calls: list[tuple[dict[str, Any], Tensor | None]] = []

    def record(_module: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
        calls.append((kwargs, output[1]))

    hooks = [
        layer.self_attn.register_forward_hook(record, with_kwargs=True)
        for layer in model.model.layers
    ]
    rows, cache = torch.tensor([ids], device=model.device), DynamicCache()
    try:
        with torch.inference_mode():
            model.model(input_ids=rows, past_key_values=cache)
    finally:
        for hook in hooks:
            hook.remove()
    return Prefill(rows, entries(cache), calls)


def entries(cache: Any) -> KV:
    """What lies in a cache of transformers."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def without_masked(model: Any, kv: KV) -> Kept:
    """Take out what a press has masked, and forget the masks.

    A press that chooses for all heads together lets the cache as it is and notes the entries that
    attention may not read, on each layer's attention as ``masked_key_indices``.
    """
    attentions = [layer.self_attn for layer in model.model.layers]
    masks = [getattr(attention, "masked_key_indices", None) for attention in attentions]
    for attention in attentions:
        attention.masked_key_indices = None
    if all(mask is None for mask in masks):
        return Kept(kv)
    left: KV = []
    heads = []
    for (keys, values), mask in zip(kv, masks, strict=True):
        read = torch.ones(keys.shape[:3], dtype=torch.bool)
        if mask is not None:
            read[mask] = False
        counts = read.sum(-1)
        last = keys.shape[2] - int(counts.max())  # what is read goes to the end, in its order
        places = read.to(torch.int8).argsort(dim=-1, stable=True)[..., last:].to(keys.device)
        index = places[..., None].expand(-1, -1, -1, keys.shape[3])
        left.append((keys.gather(2, index), values.gather(2, index)))
        heads.append(counts[0])
    return Kept(left, heads)
