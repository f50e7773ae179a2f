"""Attention weights of a prompt's last queries, as many heads at once as memory allows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from qm_vllm.compress.query_attention import QueryAttention

CACHED = 1 << 20
"""Bytes of weights that a CPU makes at once: more than its caches hold takes two to three times as
long."""


def window_attention(
    queries: Tensor, keys: Tensor, scale: float, at_once: int, soft_cap: float = 0.0
) -> QueryAttention:
    """What the last queries of one layer look at, over all heads given.

    Args:
        queries, keys, scale, at_once, soft_cap: as of :func:`window_weights`.
    """
    weights = window_weights(queries, keys, scale, at_once, soft_cap)
    return QueryAttention.joined([QueryAttention.of(some) for some, _ in weights])


def window_weights(
    queries: Tensor, keys: Tensor, scale: float, at_once: int, soft_cap: float = 0.0,
    *, causal: bool = True,
) -> Iterator[tuple[Tensor, slice]]:
    """Softmax weights [H', W, N] float32 of W queries, some heads at a time.

    Args:
        queries: [W, H, D], of the last W positions. keys: [N, KVH, D]; both rotated.
        scale: of the logits. soft_cap: c of ``c tanh(logits / c)``; 0: none.
        at_once: bytes of weights that one call may make, on a CPU :data:`CACHED` at most; one
            head's are made in any case.
        causal: false if the queries stand behind all keys.

    Yields:
        The weights, and the KV heads that they are of: whole ones as long as these fit, else some
        of one KV head's queries.
    """
    window, num_tokens, kv_heads = queries.shape[0], keys.shape[0], keys.shape[1]
    grouped = (queries.float() * scale).reshape(window, kv_heads, -1, queries.shape[-1])
    grouped = grouped.permute(1, 2, 0, 3)
    columns = keys.permute(1, 2, 0)
    future, each = _future(window, keys.device), grouped.shape[1]
    row = 4 * window * num_tokens
    at_once = min(at_once, CACHED) if keys.device.type == "cpu" else at_once
    share, step = min(each, max(1, at_once // row)), max(1, at_once // (row * each))
    for first in range(0, kv_heads, step):
        heads = slice(first, first + step)
        for start in range(0, each, share):
            some = grouped[heads, start : start + share].reshape(
                len(grouped[heads]), -1, queries.shape[-1]
            )
            logits = torch.bmm(some, columns[heads].float()).reshape(-1, window, num_tokens)
            if soft_cap:
                logits = logits.div_(soft_cap).tanh_().mul_(soft_cap)
            if causal:
                logits[:, :, num_tokens - window :].masked_fill_(future, float("-inf"))
            yield logits.softmax(-1), heads


@lru_cache
def _future(window: int, device: torch.device) -> Tensor:
    """Which of the last positions come after which: bool [W, W], made once for a device."""
    with torch.inference_mode(False):
        return torch.ones(window, window, dtype=torch.bool, device=device).triu(1)
