"""The delivery "native": KV of all layers of the full prefill, chosen once or by every head.

``native`` keeps for every head what the score ``query`` chooses. The variants with heads spend a
share of the budget on tokens that each KV head of each layer chooses for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from qm_vllm.calibration import calibrated
from qm_vllm.compress import choose, choose_for_heads, protected_positions, scores_of_heads
from qm_vllm.compress.head_choice import HEAD_QUERIES
from qm_vllm.compress.query_attention import RECENT
from qm_vllm.config import QuickMergeConfig
from qm_vllm.layers import WINDOW_QUERIES
from qm_vllm_eval.methods import head_scores as by
from qm_vllm_eval.methods.base import Method, Request, keep_entries
from qm_vllm_eval.methods.quickmerge import evidence_of, options_of
from qm_vllm_eval.reference.prefill import Prefill
from qm_vllm_eval.reference.reader import CompressedContext

AHEAD = 512
"""Positions to come over which queries are expected to stand."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of a prefill as a score gets it; N tokens, queries and keys per position first."""

    prefill: Prefill
    number: int
    wanted: Tensor
    protected: Tensor

    @property
    def scale(self) -> float:
        return float(self.prefill.decoder.layers[self.number].self_attn.scaling)

    @property
    def keys(self) -> Tensor:
        """[N, KVH, D], rotated."""
        places = torch.arange(len(self.prefill))
        return self.prefill.keys_at(self.number, places, places).transpose(0, 1)

    @property
    def values(self) -> Tensor:
        """[N, KVH, D]."""
        return self.prefill.values[self.number].transpose(0, 1)

    def plain_queries(self, start: int) -> Tensor:
        """Of the positions from ``start`` (may be negative) on, before rotation: [W, H, D]."""
        states = self.prefill.states[self.number][start:]
        return self.prefill.decoder.project(self.number, states[None])[0][0].transpose(0, 1)

    def window(self) -> Tensor:
        """Of the last 64 positions, rotated: [W, H, D]."""
        plain = self.plain_queries(-WINDOW_QUERIES).transpose(0, 1)
        count = len(self.prefill)
        places = torch.arange(count - plain.shape[1], count)
        return self.prefill.decoder.place(plain, places).transpose(0, 1)

    def ahead(self, plain: Tensor) -> Tensor:
        """Queries [W, H, D] turned to the mean over the next :data:`AHEAD` positions."""
        count = len(self.prefill)
        cos, sin = self.prefill.decoder.angles(torch.arange(count, count + AHEAD)[None])
        return by.ahead(plain, cos[0, 0].mean(0), sin[0, 0].mean(0))


Score = Callable[[Layer], Tensor]


def _window(group: by.Group, smooth: str, pool: int, layer: Layer) -> Tensor:
    return by.window_attention_of_heads(
        layer.window(), layer.keys, layer.scale, group=group, pool=pool, smooth=smooth,  # type: ignore[arg-type]
    )


def _expected(start: int, covariance: bool, layer: Layer) -> Tensor:
    queries = layer.ahead(layer.plain_queries(start))
    paid = by.expected_attention(queries, layer.keys, layer.scale, covariance=covariance)
    return paid * by.value_norms(layer.values)


def _ahead(group: by.Group, layer: Layer) -> Tensor:
    queries = layer.ahead(layer.plain_queries(-WINDOW_QUERIES))
    paid = by.attention_ahead(queries, layer.keys, layer.scale, group)
    return paid * by.value_norms(layer.values)


def _looked_up(score: Score, layer: Layer) -> Tensor:
    recent = by.window_attention_of_heads(
        layer.window()[-RECENT:], layer.keys, layer.scale, group="max", pool=1
    )
    return by.looked_up(score(layer), recent, layer.wanted, layer.protected)


def _with_value(score: Score, layer: Layer) -> Tensor:
    return score(layer) * by.value_norms(layer.values)


def _mixed(one: Score, other: Score, layer: Layer) -> Tensor:
    return by.ranks(one(layer)) + by.ranks(other(layer))


_MEAN, _MAX = partial(_window, "mean", "max", by.POOL), partial(_window, "max", "max", by.POOL)
_LAST = partial(_expected, -WINDOW_QUERIES, True)
_AHEAD = partial(_ahead, "mean")
_KEYS: Score = lambda layer: by.key_difference(layer.keys)  # noqa: E731

def _query(layer: Layer) -> Tensor:
    return by.query_of_heads(layer.window(), layer.keys, layer.scale)


def _query_of_layer(layer: Layer) -> Tensor:
    """All heads of the layer as if they were one KV head: the same positions for each."""
    keys = layer.keys
    seen = by.window_attention(layer.window(), keys, layer.scale, by.AT_ONCE)
    return by.spread_views(seen)[None].expand(keys.shape[1], -1)


def _query_value(queries: int, layer: Layer) -> Tensor:
    """The plug-in's own score, from so many of the last queries."""
    last = layer.window()[-queries:]
    return scores_of_heads(last, layer.keys, layer.values, layer.scale, by.AT_ONCE)


def _reached(layer: Layer) -> Tensor:
    norms = by.value_norms(layer.values)
    return by.reached_attention(layer.window(), layer.keys, layer.scale, norms)


def _query_and(own: Score, other: Score, share: float, layer: Layer) -> Tensor:
    return by.shared(own(layer), other(layer), share)


_LONG = partial(_query_value, WINDOW_QUERIES)

SCORES: dict[str, tuple[str, Score]] = {
    "expected": (
        "attention expected from the mean and covariance of all queries, times value norm",
        partial(_expected, by.SINKS, True),
    ),
    "expected-window": ("the same from the last 64 queries", _LAST),
    "expected-mean": (
        "the same from the mean of the last 64 queries alone",
        partial(_expected, -WINDOW_QUERIES, False),
    ),
    "ahead": ("mean attention of the last 64 queries put at positions to come, times value norm",
              _AHEAD),
    "ahead-max": ("the same, highest of the query heads", partial(_ahead, "max")),
    "window": ("mean attention of the last 64 queries, max-pool 7", _MEAN),
    "window-max": ("the same, highest of the query heads", _MAX),
    "window-mean-pool": ("the same, mean of the heads, mean-pool 5",
                         partial(_window, "mean", "mean", 5)),
    "window-plain": ("the same, not smoothed", partial(_window, "mean", "max", 1)),
    "window-value": ("window times value norm", partial(_with_value, _MEAN)),
    "window-max-value": ("window-max times value norm", partial(_with_value, _MAX)),
    "keydiff": ("minus the cosine of the key to the head's mean key", _KEYS),
    "window-keydiff": ("ranks of window and keydiff", partial(_mixed, _MEAN, _KEYS)),
    "query": ("the score query of the head alone", _query),
    "query-value": ("the same, attention times value norm", _LONG),
    "query-value-short": (
        f"the same from the last {HEAD_QUERIES} queries, as the engine does it",
        partial(_query_value, HEAD_QUERIES),
    ),
    "query-value-8": ("the same from the last 8 queries", partial(_query_value, 8)),
    "query-layer": ("the score query of all heads of the layer together", _query_of_layer),
    "query-ahead": ("three quarters by query, a quarter by ahead",
                    partial(_query_and, _query, _AHEAD, 0.25)),
    "query-window": ("three quarters by query, a quarter by window-plain",
                     partial(_query_and, _query, partial(_window, "mean", "max", 1), 0.25)),
    "query-value-ahead": ("three quarters by query-value, a quarter by ahead",
                          partial(_query_and, _LONG, _AHEAD, 0.25)),
    "query-value-window": (
        "three quarters by query-value, a quarter by window-plain times value norm",
        partial(_query_and, _LONG,
                partial(_with_value, partial(_window, "mean", "max", 1)), 0.25),
    ),
    "lookup-ahead": ("a mixture of ahead and what query wants", partial(_looked_up, _AHEAD)),
    "lookup-window": ("a mixture of window and what query wants", partial(_looked_up, _MEAN)),
    "lookup-reach": ("a mixture of attention that reaches forward and what query wants",
                     partial(_looked_up, _reached)),
    "ahead-window": ("ranks of ahead and window", partial(_mixed, _AHEAD, _MEAN)),
}


VARIANTS: dict[str, tuple[str, float]] = {
    "native-heads": ("query-value-short", 0.25),
    "native-heads-eighth": ("query-value-short", 0.125),
    "native-heads-half": ("query-value-short", 0.5),
    "native-heads-most": ("query-value-short", 0.75),
    "native-heads-query": ("query", 0.5),
    "native-heads-expected": ("expected", 0.25),
    "native-heads-window": ("window-max", 0.25),
    "native-heads-keydiff": ("keydiff", 0.25),
    "native-expected": ("expected", 1.0),
}
"""Methods of the bench: the score of the heads, and their share of the budget."""


def shared_positions(request: Request, share: float) -> tuple[Tensor, Tensor]:
    """What ``query`` chooses for all heads: (1 - share) K positions, all protected ones at least.

    Returns:
        int64 positions, increasing; bool [N], the protected ones.
    """
    chosen = options_of("quickmerge", request)
    config = calibrated(QuickMergeConfig().override(chosen), request.decoder.config)
    if request.k >= request.tokens:
        every = torch.arange(request.tokens)
        return every, every >= 0
    protected = protected_positions(config, request.tokens, special=request.special)
    k = max(round((1 - share) * request.k), int(protected.sum()))
    evidence = evidence_of(request, config)
    return choose(evidence, config, protected=protected, k=k).kept.cpu(), protected.cpu()


def compress(score: str | None, share: float, request: Request) -> CompressedContext:
    """KV of all layers; a share of the budget goes to tokens of each head's own choice."""
    shared, protected = shared_positions(request, share if score else 0.0)
    if score is None or len(shared) >= request.k:
        return keep_entries(request, shared)
    prefill, decoder = request.prefill, request.decoder
    wanted = torch.zeros(request.tokens, dtype=torch.bool)
    wanted[shared_positions(request, 0.0)[0]] = True
    keys, values = [], []
    for number in range(decoder.num_layers):
        layer = Layer(prefill, number, wanted, protected)
        k = request.k if score.startswith("lookup") else None
        scores = request.once((score, number, k), partial(SCORES[score][1], layer))
        kept = choose_for_heads(scores, shared.to(scores.device), request.k)
        kept = kept[:, : request.k - request.held, None].expand(-1, -1, decoder.head_dim)
        placed = request.once(("placed", number), partial(getattr, layer, "keys"))
        keys.append(placed.transpose(0, 1).gather(1, kept))
        values.append(prefill.values[number].gather(1, kept))
    return CompressedContext(keys, values, request.tokens - request.held)


def method(name: str, score: str | None = None, share: float = 0.0) -> Method:
    """A variant as a method of the bench."""
    text = "KV of all layers of the full prefill at the positions that `query` chooses"
    if score:
        text = (
            f"{text} for {1 - share:.0%} of K, the rest chosen by every KV head: {SCORES[score][0]}"
        )
    return Method(name, text, partial(compress, score, share))
