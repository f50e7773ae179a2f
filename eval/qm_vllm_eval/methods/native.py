"""The delivery "native": KV of all layers of the full prefill, as the plug-in chooses them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from qm_vllm.calibration import calibrated
from qm_vllm.compress import (
    HeadOrder,
    choose,
    choose_for_heads,
    end_in_every_head,
    layer_sizes,
    protected_positions,
    scores_of_heads,
)
from qm_vllm.compress.layer_budget import LAYER_SHARE
from qm_vllm.config import QuickMergeConfig
from qm_vllm_eval.methods import expected_attention as gaussian
from qm_vllm_eval.methods.base import Method, Request, keep_entries
from qm_vllm_eval.methods.quickmerge import evidence_of, options_of
from qm_vllm_eval.reference.habits import habits_of
from qm_vllm_eval.reference.reader import CompressedContext

AHEAD = 512
"""Positions to come over which queries are expected to stand."""
AT_ONCE = 64 << 20
"""Bytes of attention weights at a time."""

Score = Callable[[Request, int], Tensor]
"""``score(request, layer)``: [KVH, N], what the layer's heads would keep for themselves."""


def _of_any_text(request: Request, layer: int) -> Tensor:
    """The plug-in's own score."""
    queries = habits_of(request.decoder).queries_at(request.decoder, layer, request.tokens)
    keys, values = _rows(request, layer)
    return scores_of_heads(queries, keys, values, _scale(request, layer), AT_ONCE)


def _expected(request: Request, layer: int) -> Tensor:
    """Expected attention, from the prompt's own queries."""
    decoder, count = request.decoder, request.tokens
    states = request.prefill.states[layer][gaussian.SINKS :]
    plain = decoder.project(layer, states[None])[0][0].transpose(0, 1)
    cos, sin = decoder.angles(torch.arange(count, count + AHEAD)[None])
    queries = gaussian.ahead(plain, cos[0, 0].mean(0), sin[0, 0].mean(0))
    keys, values = _rows(request, layer)
    return gaussian.expected_attention(queries, keys, values, _scale(request, layer))


def _rows(request: Request, layer: int) -> tuple[Tensor, Tensor]:
    """Keys, rotated, and values of all positions: [N, KVH, D]."""
    prefill, places = request.prefill, torch.arange(request.tokens)
    keys = request.once(("placed", layer), partial(prefill.keys_at, layer, places, places))
    return keys.transpose(0, 1), prefill.values[layer].transpose(0, 1)


def _scale(request: Request, layer: int) -> float:
    return float(request.decoder.layers[layer].self_attn.scaling)


@dataclass(frozen=True)
class Heads:
    """What KV heads do for themselves.

    Attributes:
        score: what they choose by. text: the same in words.
        layers: of the entries of all layers, the share of those that look things up; 0: all layers
            keep as many.
        alike: they do what those do that look nothing up.
    """

    score: Score
    text: str
    layers: float = 0.0
    alike: bool = False


_SHARE = QuickMergeConfig().head_share
_ANY, _OWN = "what queries of any text attend to", "the head's expected attention"
VARIANTS: dict[str, Heads | None] = {
    "native": Heads(_of_any_text, _ANY, LAYER_SHARE),
    "native-equal-layers": Heads(_of_any_text, _ANY),
    "native-one-choice": None,
    "native-all-heads": Heads(_of_any_text, _ANY, alike=True),
    "native-expected": Heads(_expected, _OWN),
}
"""Methods of the bench; None: all heads keep the one choice."""


def compress(heads: Heads | None, request: Request) -> CompressedContext:
    """KV of all layers at the positions of the one choice, or of the heads' own."""
    if request.k >= request.tokens:
        return keep_entries(request, torch.arange(request.tokens))
    options = options_of("quickmerge", request) | {"delivery": "native"}
    config = calibrated(QuickMergeConfig().override(options), request.decoder.config)
    protected, everywhere = (
        protected_positions(config, request.tokens, special=request.special, last=last)
        for last in (None, end_in_every_head(config))
    )
    evidence = evidence_of(request, config)
    choice = choose(evidence, config, protected=protected, k=request.k)
    if heads is None or choice.protected >= choice.k:
        return keep_entries(request, choice.kept.cpu())
    order = HeadOrder.of(choice.order, protected, everywhere, Tensor.to)
    decoder, held, habits = request.decoder, request.held, habits_of(request.decoder)
    many = sum(habits.large)
    others = decoder.num_layers // many - 1 if many else 0
    sizes = layer_sizes(choice.k, request.tokens, choice.protected, others, heads.layers)
    keys, values = [], []
    for layer, (large, looking) in enumerate(zip(habits.large, habits.looking, strict=True)):
        k = sizes[0] if large else sizes[1]
        scores = request.once((heads.score, layer), partial(heads.score, request, layer))
        looks = torch.zeros_like(looking) if heads.alike else looking
        kept = choose_for_heads(scores, order, looks, k, _SHARE)
        index = kept[:, : k - held, None].expand(-1, -1, decoder.head_dim)
        placed, value = (part.transpose(0, 1) for part in _rows(request, layer))
        keys.append(placed.gather(1, index))
        values.append(value.gather(1, index))
    return CompressedContext(keys, values, request.tokens - held)


def method(name: str) -> Method:
    """A variant as a method of the bench."""
    heads = VARIANTS[name]
    text = (
        "KV of all layers of the full prefill at the positions that `query` chooses, blind "
        "`leverage`"
    )
    if heads is not None:
        text += f", and of each KV head's own choice ({heads.text})"
        if not heads.alike:
            text += ", less the more it looks things up"
    if heads is not None and heads.layers:
        text += f"; a third of the layers, which do so most, share {heads.layers:g} of all entries"
    return Method(name, text, partial(compress, heads))
