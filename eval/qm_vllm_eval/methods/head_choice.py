"""Tokens that every KV head of a layer chooses for itself, beside those that all heads share.

The score is that of ``saliency/query.py``, computed of each head's own attention, each token times
the length of its value: what is looked at and says much. Our own combination: attention of the
last queries per head follows SnapKV (Li et al. 2024), attention times value norm follows VATP (Guo
et al. 2024). Needs keys and values of one layer and its queries of the prompt's last positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qm_vllm.compress.normalize import average_rank
from qm_vllm.compress.query_attention import AGE, RECENT
from qm_vllm.compress.saliency.query import BACKWARD, FORWARD, PASSAGE, PHRASE, SENTENCE, reach
from qm_vllm.compress.window_attention import window_weights


def choose_for_heads(scores: Tensor, shared: Tensor, k: int) -> Tensor:
    """K positions for every KV head: the shared ones, and the best of the rest by its own score.

    Args:
        scores: [KVH, N], higher = keep.
        shared: int64 [S], distinct positions that every head keeps, S <= K.

    Returns:
        int64 [KVH, min(K, N)], strictly increasing in each row.

    Raises:
        ValueError: the shared positions are more than K.
    """
    if len(shared) > k:
        raise ValueError(f"{len(shared)} shared positions are more than k={k}")
    scores = scores.float().index_fill(1, shared.to(scores.device), float("inf"))
    return scores.topk(min(k, scores.shape[1]), 1).indices.sort(1).values


def score_for_heads(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float, at_once: int,
    soft_cap: float = 0.0, ends: tuple[int, int] = (4, 32),
) -> Tensor:
    """What each KV head's last queries look up, spread over passage, sentence and phrase.

    Args:
        queries, keys, scale, at_once, soft_cap: as of
            :func:`~qm_vllm.compress.window_attention.window_weights`.
        values: [N, KVH, D].
        ends: how many of the first and of the last positions score nothing: heads attend to them
            whatever they look for, and they are kept anyway.

    Returns:
        [KVH, N] float32 in [0, 1].
    """
    views = _views(queries, keys, scale, at_once, soft_cap)
    views *= values.float().norm(dim=-1).T[:, None]
    views[..., : ends[0]] = 0
    views[..., max(0, views.shape[-1] - ends[1]) :] = 0
    forward = torch.tensor(FORWARD, dtype=torch.float64, device=views.device)[:, None]
    # As shared_rank does it for one prompt: a token's place is the best that it has in any view.
    parts = torch.tensor((PASSAGE, SENTENCE, PHRASE), dtype=torch.float64, device=views.device)
    ranks = average_rank(reach(views, forward, BACKWARD)).double()
    places = (1 - ranks) * (views.shape[-1] - 1) / parts[:, None]
    return average_rank(-torch.round(places.amin(1), decimals=3))


def _views(
    queries: Tensor, keys: Tensor, scale: float, at_once: int, soft_cap: float
) -> Tensor:
    """Recent, question and energy of :class:`QueryAttention` per KV head: [KVH, 3, N] float32."""
    views = torch.zeros(keys.shape[1], 3, keys.shape[0], device=keys.device)
    age = torch.arange(queries.shape[0] - 1, -1, -1, device=keys.device)
    say = torch.exp(-age.float() / AGE)[:, None]
    for weights, heads in window_weights(queries, keys, scale, at_once, soft_cap):
        each = weights.unflatten(0, (len(views[heads]), -1))
        recent = each[:, :, -RECENT:].mean(2)
        own = views[heads]
        own[:, 0] = torch.maximum(own[:, 0], recent.amax(1))
        own[:, 1] = torch.maximum(own[:, 1], (each.amax(1) * say).amax(1))
        own[:, 2] += recent.square().sum(1)
    views[:, 2] = views[:, 2].sqrt()
    return views
