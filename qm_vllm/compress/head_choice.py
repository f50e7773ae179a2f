"""Tokens that every KV head of a layer chooses for itself, with a share of the budget.

One choice for all heads serves what a question looks up. But heads do other work, too, and what one
of them needs for it no other may: with KV of its own each can keep its own tokens. A page of the
cache has as many rows for each head of a layer, so each keeps K.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qm_vllm.compress.query_attention import RECENT, say
from qm_vllm.compress.saliency.query import BACKWARD, SHARES, forward_reach, reach
from qm_vllm.compress.window_attention import window_weights

HEAD_QUERIES = 16
"""Last positions whose queries an engine asks: fewer than for the one choice, as heads are many."""


def scores_of_heads(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float, at_once: int,
    soft_cap: float = 0.0, ends: tuple[int, int] = (4, 32), tokens: int | None = None,
) -> Tensor:
    """What each KV head of a layer would keep: the score ``query`` of its own query heads.

    Our own combination: attention of the last queries per head follows SnapKV (Li et al. 2024),
    attention times the length of the value VATP (Guo et al. 2024), as what a head reads is their
    product.

    Args:
        queries: [W, H, D], of the last W positions. keys: [N, KVH, D]; both rotated.
        values: [N, KVH, D].
        scale, at_once, soft_cap: as of :func:`~qm_vllm.compress.window_attention.window_weights`.
        ends: how many first and last positions score nothing, because they stay in any case.
        tokens: T, how many of the first positions are the prompt's; None: all. What stands behind
            them looks at them and is not scored.

    Returns:
        [KVH, T] float32 <= 0, higher = keep: each view fills its share of any budget, as in
        :func:`~qm_vllm.compress.normalize.shared_rank`.
    """
    kv_heads, count = keys.shape[1], keys.shape[0] if tokens is None else tokens
    age = say(queries.shape[0], keys.device)
    views = queries.new_zeros((kv_heads, 3, count), dtype=torch.float32)
    for weights, heads in window_weights(queries, keys, scale, at_once, soft_cap):
        part = views[heads]
        own = weights.view(part.shape[0], -1, *weights.shape[1:])[..., :count]
        recent = own[:, :, -RECENT:].mean(2)
        torch.maximum(part[:, 0], recent.amax(1), out=part[:, 0])
        torch.maximum(part[:, 1], (own.amax(1) * age).amax(1), out=part[:, 1])
        part[:, 2] += recent.square().sum(1)
    views[:, 2].sqrt_()
    views *= values[:count].float().norm(dim=-1).T[:, None]
    views[..., : ends[0]] = 0
    views[..., max(0, count - ends[1]) :] = 0
    spread = reach(views, forward_reach(keys.device), BACKWARD)
    best = spread.float().argsort(-1, descending=True)
    place = torch.arange(count, dtype=torch.float32, device=keys.device)
    places = torch.stack([place / share for share in SHARES]).expand_as(spread)
    return -torch.empty_like(places).scatter_(-1, best, places).amin(1)


def choose_for_heads(scores: Tensor, shared: Tensor, k: int) -> Tensor:
    """K positions for every KV head: the shared ones, and the best of the rest by its own score.

    Args:
        scores: [KVH, N], higher = keep.
        shared: int64 [S], distinct positions that every head keeps, S <= K <= N.

    Returns:
        int64 [KVH, K], strictly increasing in each row.

    Raises:
        ValueError: the shared positions are more than K, or K is more than N.
    """
    if not shared.shape[0] <= k <= scores.shape[1]:
        raise ValueError(
            f"k={k} must be between the {shared.shape[0]} shared positions and the "
            f"{scores.shape[1]} tokens"
        )
    marked = scores.index_fill(1, shared, float("inf"))
    return marked.topk(k, 1).indices.sort(1).values
