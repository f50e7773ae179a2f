"""What one KV head would keep for itself: scores of all tokens from the tensors of one layer.

Pure tensors: keys and values of all N positions, queries of some. Nothing here knows the bench.
Where scores of several query heads meet in one KV head, ``group`` says how.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d, normalize

from qm_vllm.compress.normalize import shared_rank
from qm_vllm.compress.query_attention import QueryAttention
from qm_vllm.compress.saliency.query import BACKWARD, SHARES, forward_reach, reach
from qm_vllm.compress.window_attention import window_attention, window_weights

Group = Literal["max", "mean"]
SINKS = 4
"""First positions: every head attends to them whatever it looks for, so they say nothing."""
TAIL = 32
"""Last positions: every head keeps them."""
POOL = 7
"""Tokens over which a score spreads: what is looked at needs its neighbours."""
REACHED = (16.0, 8.0)
"""Tokens that attention of the last queries and of the question reaches forward as a density."""
AT_ONCE = 64 << 20
"""Bytes of attention weights at a time."""


def window_attention_of_heads(
    queries: Tensor, keys: Tensor, scale: float, *, group: Group = "mean", pool: int = POOL,
    smooth: Literal["max", "mean"] = "max",
) -> Tensor:
    """Mean attention of the last W queries per KV head, spread over neighbours (SnapKV, Li 2024).

    Args:
        queries: [W, H, D] of the last W positions. keys: [N, KVH, D]; both rotated.
        scale: of the logits.
        group: the highest or the mean of the query heads of a KV head.
        pool: odd width of the smoothing in tokens; 1: none.
        smooth: whether a token takes the highest or the mean of its neighbours.

    Returns:
        [KVH, N] float32.
    """
    heads = torch.cat([
        weights.mean(1) for weights, _ in window_weights(queries, keys, scale, AT_ONCE)
    ])
    heads = heads.reshape(keys.shape[1], -1, keys.shape[0])
    paid = heads.amax(1) if group == "max" else heads.mean(1)
    if pool == 1:
        return paid
    spread = max_pool1d if smooth == "max" else avg_pool1d
    return spread(paid[:, None], pool, stride=1, padding=pool // 2)[:, 0]


def value_norms(values: Tensor) -> Tensor:
    """Lengths of the values [N, KVH, D]: [KVH, N] float32."""
    return values.float().norm(dim=-1).T


def expected_attention(
    queries: Tensor, keys: Tensor, scale: float, *, covariance: bool = True, group: Group = "mean",
) -> Tensor:
    """Attention that queries to come will pay if they are Gaussian (Devoto et al. 2025).

    ``softmax(k . mu * scale + k . Sigma k * scale^2 / 2)`` with the mean and the covariance of the
    queries given; the first :data:`SINKS` tokens are left out and score nothing.

    Args:
        queries: [W, H, D], turned to the mean over the positions to come (see :func:`ahead`).
        keys: [N, KVH, D], rotated.
        scale: of the logits.
        covariance: whether to use the second term.
        group: the highest or the mean of the query heads of a KV head.

    Returns:
        [KVH, N] float32.
    """
    rows = queries.float() * scale
    mean = rows.mean(0)
    grouped = keys.float().transpose(0, 1)
    each = rows.shape[1] // keys.shape[1]
    logits = torch.einsum("gnd,ged->gen", grouped, mean.unflatten(0, (-1, each)))
    if covariance:
        centred = (rows - mean).transpose(0, 1)
        spread = (centred.transpose(1, 2) @ centred / len(rows)).unflatten(0, (-1, each))
        logits += torch.einsum("gnd,gedf,gnf->gen", grouped, spread, grouped) / 2
    return _over_heads(logits, group)


def attention_ahead(queries: Tensor, keys: Tensor, scale: float, group: Group = "mean") -> Tensor:
    """Mean attention of the given queries themselves, as if they stood at positions to come.

    Arguments and result as of :func:`expected_attention`: the sample instead of a Gaussian.
    """
    each = queries.shape[1] // keys.shape[1]
    rows = (queries.float() * scale).permute(1, 0, 2).unflatten(0, (-1, each))
    logits = torch.einsum("gewd,gnd->gewn", rows, keys.float().transpose(0, 1))
    logits[..., :SINKS] = float("-inf")
    paid = logits.softmax(-1).mean(2)
    return paid.amax(1) if group == "max" else paid.mean(1)


def key_difference(keys: Tensor) -> Tensor:
    """Minus the cosine of each key to the mean direction of its head (KeyDiff, Park et al. 2025).

    Args:
        keys: [N, KVH, D].

    Returns:
        [KVH, N] float32.
    """
    unit = normalize(keys.float(), dim=-1)
    return -(unit * normalize(unit.mean(0), dim=-1)).sum(-1).T


def ahead(queries: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries before rotation, turned to the mean over positions to come.

    Args:
        queries: [W, H, D], halves layout (RoPE, Su et al. 2021).
        cos, sin: [D], means over these positions.
    """
    half = queries.shape[-1] // 2
    turned = torch.cat((-queries[..., half:], queries[..., :half]), dim=-1)
    return queries * cos + turned * sin


def query_of_heads(
    queries: Tensor, keys: Tensor, scale: float, times: Tensor | None = None
) -> Tensor:
    """The score ``query`` of each KV head alone: what its own last queries look up.

    Arguments as of :func:`window_attention_of_heads`; ``times`` [KVH, N] weights the tokens.

    Returns:
        [KVH, N] float32.
    """
    each = queries.shape[1] // keys.shape[1]
    rows = []
    for head in range(keys.shape[1]):
        own = queries[:, head * each : (head + 1) * each]
        seen = window_attention(own, keys[:, head : head + 1], scale, AT_ONCE)
        rows.append(spread_views(seen, None if times is None else times[head]))
    return torch.stack(rows)


def spread_views(seen: QueryAttention, times: Tensor | None = None) -> Tensor:
    """The three views of ``query`` in one score [N]; ``times`` [N] weights the tokens before."""
    views = torch.stack((seen.recent, seen.question, seen.energy.sqrt()))
    if times is not None:
        views = views * times
    views[:, :SINKS] = 0
    views[:, -TAIL:] = 0
    spread = reach(views, forward_reach(views.device), BACKWARD)
    return shared_rank(list(zip(spread, SHARES, strict=True)))


def reached_attention(queries: Tensor, keys: Tensor, scale: float, times: Tensor) -> Tensor:
    """Attention of the last queries, times ``times`` [KVH, N], spread to what stands behind it.

    Other arguments as of :func:`window_attention_of_heads`.

    Returns:
        [KVH, N] float32, not ranks: what is looked at twice as much counts twice as much.
    """
    each = queries.shape[1] // keys.shape[1]
    rows = []
    for head in range(keys.shape[1]):
        own = queries[:, head * each : (head + 1) * each]
        seen = window_attention(own, keys[:, head : head + 1], scale, AT_ONCE)
        views = torch.stack((seen.recent, seen.question)) * times[head]
        views[:, :SINKS] = 0
        views[:, -TAIL:] = 0
        forward = torch.tensor(REACHED, dtype=torch.float64, device=views.device)[:, None]
        rows.append(reach(views, forward, BACKWARD).exp().amax(0))
    return torch.stack(rows).float()


def shared(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Two scores [KVH, N] in one: the second fills ``share`` of any budget of a head."""
    return torch.stack([
        shared_rank([(a, 1 - share), (b, share)]) for a, b in zip(one, other, strict=True)
    ])


def looked_up(own: Tensor, recent: Tensor, wanted: Tensor, protected: Tensor) -> Tensor:
    """Attention to come as a mixture: a look-up of the wanted tokens, or what the head does else.

    A head's weight of the look-up is the share of its recent attention that goes to the wanted
    tokens; protected tokens count nowhere.

    Args:
        own: [KVH, N], what the head attends to without a look-up.
        recent: [KVH, N], attention of the last queries.
        wanted: bool [N], what ``query`` would keep. protected: bool [N].

    Returns:
        [KVH, N] float32.
    """
    free = ~protected
    wanted = (wanted & free).float()
    weight = (recent * wanted).sum(1) / (recent * free).sum(1).clamp_min(1e-9)
    plain = own * free / (own * free).sum(1, keepdim=True).clamp_min(1e-30)
    return (1 - weight)[:, None] * plain + weight[:, None] * wanted / wanted.sum().clamp_min(1)


def ranks(scores: Tensor) -> Tensor:
    """Places of the scores within their row as shares in [0, 1): [KVH, N] float32, best last."""
    return scores.argsort(1).argsort(1).float() / scores.shape[1]


def _over_heads(logits: Tensor, group: Group) -> Tensor:
    """Softmax [KVH, E, N] without the sinks, reduced over the E query heads: [KVH, N]."""
    logits[..., :SINKS] = float("-inf")
    paid = logits.softmax(-1)
    return paid.amax(1) if group == "max" else paid.mean(1)
