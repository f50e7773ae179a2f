"""Tokens that every KV head of a layer chooses for itself, with a share of the budget.

One choice for all heads serves what a question looks up, and the few heads that look things up keep
to it. The others do other work: the less a head looks things up, the more of its budget it spends
on what its queries attend to in any text. A page of the cache has as many rows for each head of a
layer, so each keeps K.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qm_vllm.compress.choice import Upload
from qm_vllm.compress.window_attention import window_weights
from qm_vllm.config import QuickMergeConfig

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


def shares_of_heads(looking: Tensor, share: float) -> Tensor:
    """What of the budget each KV head of a layer spends on tokens of its own.

    Args:
        looking: [KVH], how much each looks things up
            (:class:`~qm_vllm.compress.head_habits.HeadHabits`).
        share: of a head that does not at all.

    Returns:
        [KVH]: less the more a head looks things up, half of ``share`` at 1; from there on
        :data:`LOOKING_UP_SHARE` at most.
    """
    return torch.where(looking < 1, share * (1 - looking / 2), min(share, LOOKING_UP_SHARE))


def end_in_every_head(config: QuickMergeConfig) -> int:
    """How many of a prompt's last tokens stay in every KV head, and not only where things are
    looked up.

    A question at the end is read by heads that look things up. The others would spend much of a
    small budget on it, so there it stays if a head wants it. What is to come behind a prompt whose
    question is hidden goes on from its end in every head.
    """
    return 1 if config.query_visible else config.protect_last


class HeadOrder(NamedTuple):
    """The one order of all N positions, for heads that also choose for themselves.

    Attributes:
        positions: int64 [N]: those that stay in every head, then the others, those to keep first,
            at last the prompt's protected end.
        fixed: how many stay in every head. end: how many stay in heads that look things up.
    """

    positions: Tensor
    fixed: int
    end: int

    @classmethod
    def of(cls, order: Tensor, protected: Tensor, everywhere: Tensor, upload: Upload) -> HeadOrder:
        """From the order that all follow.

        Args:
            order: int64 [N], all positions, those to keep first.
            protected: bool [N] on the CPU, what stays in heads that look things up.
            everywhere: bool [N] on the CPU, those of them that stay in every head.
            upload: brings a mask [N] to the order's device.
        """
        place = (~everywhere).long() + (protected & ~everywhere).long()
        sort = upload(place, order.device)[order].sort(stable=True).indices
        fixed = int(everywhere.sum())
        return cls(order[sort], fixed, int(protected.sum()) - fixed)


def choose_for_heads(
    scores: Tensor, order: HeadOrder, looking: Tensor, k: int, share: float
) -> Tensor:
    """K positions for every KV head, of the one order for all and of its own by turns.

    With s the head's share (:func:`shares_of_heads`), its i-th best token has the place i / s, the
    i-th of the one order i / (1 - s), and a token the better of its two.

    Args:
        scores: [KVH, N], higher = keep.
        looking: [KVH], as of :func:`shares_of_heads`; a head with 1 or more looks things up.
        k: K, of those that stay and the others.
        share: of the budget behind those that stay, of a head that does not look things up.

    Returns:
        int64 [KVH, K], strictly increasing in each row.

    Raises:
        ValueError: not fixed + end <= K <= N.
    """
    (heads, count), (positions, fixed, end) = scores.shape, order
    if not fixed + end <= k <= count:
        raise ValueError(f"k={k} must be between {fixed + end} protected tokens and all {count}")
    first, others = positions[:fixed], positions[fixed:]
    turn = torch.arange(count - fixed, dtype=torch.float32, device=scores.device)
    finders = looking[:, None] >= 1
    stays = finders & (turn >= count - fixed - end)
    ranked = scores[:, others].masked_fill(stays, torch.inf)
    ranked = ranked.sort(dim=1, descending=True, stable=True).indices
    own = torch.empty_like(scores[:, fixed:]).scatter_(1, ranked, turn.expand(heads, -1))
    shares = shares_of_heads(looking.to(own), share)[:, None].clamp(EVERY, 1 - EVERY)
    places = torch.minimum((own - end * finders) / shares, turn / (1 - shares))
    places = places.masked_fill(stays, -1)
    best = others[places.topk(k - fixed, 1, largest=False).indices]
    return torch.cat((first.expand(heads, -1), best), 1).sort(1).values
