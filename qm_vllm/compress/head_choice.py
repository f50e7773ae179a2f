"""Tokens that every KV head of a layer chooses for itself, with a share of the budget.

One choice for all heads serves what a question looks up, and the few heads that look things up keep
to it. The others do other work: each keeps most of what its queries attend to in any text. A page
of the cache has as many rows for each head of a layer, so each keeps K.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qm_vllm.compress.window_attention import window_weights

LOOKING_UP_SHARE = 0.05
"""Of the budget, what a head that looks things up spends on tokens of its own at most: sinks that
it rests on."""
EVERY = 1e-6
"""Of shares: what stands for none, so that each token has a place in both orders."""


def scores_of_heads(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float, at_once: int,
    soft_cap: float = 0.0,
) -> Tensor:
    """What each KV head of a layer would keep: what queries behind the prompt attend to.

    Attention times the length of the value, as what a head reads is their product (VATP, Guo et al.
    2024).

    Args:
        queries: [W, H, D], of positions behind the prompt
            (:class:`~qm_vllm.compress.head_habits.HeadHabits`).
        keys: [N, KVH, D]; both rotated. values: [N, KVH, D].
        scale, at_once, soft_cap: as of :func:`~qm_vllm.compress.window_attention.window_weights`.

    Returns:
        [KVH, N] float32 >= 0, higher = keep.
    """
    kv_heads = keys.shape[1]
    scores = torch.zeros(kv_heads, keys.shape[0], dtype=torch.float32, device=keys.device)
    for weights, heads in window_weights(queries, keys, scale, at_once, soft_cap, causal=False):
        scores[heads] += weights.mean(1).view(scores[heads].shape[0], -1, keys.shape[0]).sum(1)
    return scores.mul_(values.float().norm(dim=-1).T)


def choose_for_heads(
    scores: Tensor, order: Tensor, protected: int, k: int, share: Tensor
) -> Tensor:
    """K positions for every KV head, of the one order for all and of its own by turns.

    Args:
        scores: [KVH, N], higher = keep.
        order: int64 [N], all positions, those to keep first; the protected ones lead it.
        protected: how many positions every head keeps. k: K, of them and the others.
        share: [KVH], of the budget behind the protected ones what goes to the head's own best: its
            i-th best token has the place i / share, the i-th of the one order i / (1 - share), and
            a token the better of its two.

    Returns:
        int64 [KVH, K], strictly increasing in each row.

    Raises:
        ValueError: not protected <= K <= N.
    """
    heads, count = scores.shape
    if not protected <= k <= count:
        raise ValueError(f"k={k} must be between {protected} protected tokens and all {count}")
    first, others = order[:protected], order[protected:]
    turn = torch.arange(count - protected, dtype=torch.float32, device=scores.device)
    ranked = scores[:, others].sort(dim=1, descending=True, stable=True)
    own = torch.empty_like(ranked.values).scatter_(1, ranked.indices, turn.expand(heads, -1))
    share = share.to(own)[:, None].clamp(EVERY, 1 - EVERY)
    places = torch.minimum(own / share, turn / (1 - share))
    best = others[places.topk(k - protected, 1, largest=False).indices]
    return torch.cat((first.expand(heads, -1), best), 1).sort(1).values
