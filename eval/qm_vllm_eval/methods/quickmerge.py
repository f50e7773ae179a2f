"""QuickMerge as the plug-in does it: score, choose, merge, and run the upper layers over K."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qm_vllm.calibration import calibrated
from qm_vllm.compress import (
    Evidence,
    QueryAttention,
    choose,
    finish,
    needs,
    protected_positions,
    row_norms,
)
from qm_vllm.config import QuickMergeConfig
from qm_vllm.layers import WINDOW_QUERIES, resolve_layers, window_layers
from qm_vllm.option_checks import NO_HINT
from qm_vllm_eval.methods.base import Method, Request, run_again
from qm_vllm_eval.reference.habits import habits_of
from qm_vllm_eval.reference.reader import CompressedContext

FEWEST_FOR_SPECIAL = 40
"""Below this many kept tokens the template's special tokens are not protected."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "quickmerge": (
        "what the question looks up, at three lengths of evidence; blind: entropy", {}
    ),
    "quickmerge-entropy": ("attention entropy alone, the paper's score", {"saliency": "entropy"}),
    "quickmerge-compact": ("kept positions renumbered 0..K-1", {"positions": "compact"}),
    "quickmerge-norm": ("norms of the states, the paper's norm masking", {"saliency": "norm"}),
    "quickmerge-ned": ("normalised entropy drop, the paper's appendix A", {"saliency": "ned"}),
    "quickmerge-select": ("kept tokens alone, nothing merged in", {"merge": "select"}),
    "quickmerge-mean": ("plain means of the groups", {"merge": "mean"}),
    "quickmerge-knn": ("dropped tokens join the nearest by cosine", {"grouping": "knn"}),
    "quickmerge-chain": ("neighbours joined by agglomeration", {"grouping": "chain"}),
    "quickmerge-prefill": ("the kept tokens prefilled again", {"delivery": "prefill"}),
    "quickmerge-entropy-prefill": (
        "attention entropy alone, the kept tokens prefilled again",
        {"saliency": "entropy", "delivery": "prefill"},
    ),
}
"""What each variant is, and the request options that make it."""


def options(name: str, k: int, *, visible: bool) -> dict[str, Any]:
    """Request options of a variant for a budget of k tokens, as the plug-in takes them.

    The protected tail is half of the budget where that is less than the default,
    so that every method has the same K.
    """
    base = QuickMergeConfig()
    tail = max(1, min(base.protect_last, k // 2))
    chosen: dict[str, Any] = {
        "max_kept": k,
        "protect_first": min(base.protect_first, max(0, k - tail - 1)),
        "protect_last": tail,
        "protect_special": k >= FEWEST_FOR_SPECIAL,
        "query_visible": visible,
        "min_tokens": 2,
    }
    return chosen | VARIANTS[name][1]


def options_of(name: str, request: Request) -> dict[str, Any]:
    """The same of a request, with its hint where the variant looks at all."""
    chosen = options(name, request.k, visible=request.visible)
    looks = "saliency" not in VARIANTS[name][1]
    return chosen | ({"hint": request.hint.text} if request.hint and looks else {})


def evidence_of(request: Request, config: QuickMergeConfig) -> Evidence:
    """What the score of ``config`` needs.

    Each part is computed once for all ratios and variants of a prompt.
    """
    prefill, wanted = request.prefill, needs(config)
    depth, (first, last) = resolve_layers(config, request.decoder.num_layers)

    def scored(kinds: frozenset[str]) -> Evidence:
        part = Evidence(num_tokens=request.tokens)
        for layer in range(first, last):
            part.observe_layer(prefill.states[layer], config.logit_scale, kinds)
        return part

    hint = None if config.hint in NO_HINT else request.hint
    queries = WINDOW_QUERIES
    if hint is not None and not config.query_visible:
        queries = hint.tokens

    def window(layer: int) -> QueryAttention:
        read = prefill if hint is None else hint.prefill
        seen = QueryAttention.of(read.head_attention(layer, queries).cpu())
        return seen.of_rows(slice(request.tokens))

    evidence = Evidence(num_tokens=request.tokens)
    kinds = wanted & {"entropy", "incoming"}
    if kinds:
        part = request.once((kinds, first, last), lambda: scored(kinds))
        evidence.entropies, evidence.incoming = part.entropies, part.incoming
    if "attention" in wanted:
        count = window_layers(config, request.decoder.num_layers)
        evidence.attention = [
            request.once(("attention", layer, hint is None), partial(window, layer))
            for layer in range(max(0, depth - count), depth)
        ]
    if "leverage" in wanted:
        habits = habits_of(request.decoder)
        evidence.leverage = request.once("leverage", lambda: habits.standing_out(prefill))
    evidence.norms = request.once(("norms", depth), lambda: row_norms(prefill.states[depth]).cpu())
    return evidence


def compress(name: str, request: Request) -> CompressedContext:
    """Compress by one variant."""
    return compress_with(options_of(name, request), request)


@dataclass(frozen=True, eq=False)
class Merged:
    """What stays of a prompt: states [K, D] at layer ``depth``, kept positions [K], and why."""

    states: Tensor
    kept: Tensor
    depth: int
    config: QuickMergeConfig
    evidence: Evidence | None = None
    scores: Tensor | None = None
    protected: Tensor | None = None


def merged_by(chosen: dict[str, Any], request: Request) -> Merged:
    """Score, choose and merge by request options, as :func:`options` makes them."""
    config = calibrated(QuickMergeConfig().override(chosen), request.decoder.config)
    depth, _ = resolve_layers(config, request.decoder.num_layers)
    states = request.prefill.states[depth]
    if request.k >= request.tokens:
        return Merged(states, torch.arange(request.tokens), depth, config)
    evidence = evidence_of(request, config)
    protected = protected_positions(config, request.tokens, special=request.special)
    choice = choose(evidence, config, protected=protected, k=request.k)
    scores, kept = choice.scores.cpu(), choice.kept.cpu()
    states = finish(states, evidence, scores, kept, config).states
    return Merged(states, kept, depth, config, evidence, scores, protected)


def compress_with(chosen: dict[str, Any], request: Request) -> CompressedContext:
    """Compress by request options, as :func:`options` makes them."""
    merged = merged_by(chosen, request)
    return deliver(request, merged.states, merged.kept, merged.config)


def deliver(
    request: Request, states: Tensor, kept: Tensor, config: QuickMergeConfig
) -> CompressedContext:
    """KV of the kept positions: the anchors' own below E, the merged states' from E up."""
    if config.delivery == "prefill":
        return run_again(request, kept)
    decoder, prefill = request.decoder, request.prefill
    depth, _ = resolve_layers(config, decoder.num_layers)
    stored = kept[: len(kept) - request.held]
    # Distances are all that rotary embeddings see, so the plug-in's shifted positions are these.
    places = torch.arange(len(stored)) if config.positions == "compact" else stored
    keys = [prefill.keys_at(layer, stored, places) for layer in range(depth)]
    values = [prefill.values_at(layer, stored) for layer in range(depth)]
    _, upper, _ = decoder.run(states[: len(stored)], depth, decoder.num_layers, places)
    for plain, value in upper:
        keys.append(decoder.place(plain, places))
        values.append(value)
    after = len(stored) if config.positions == "compact" else request.tokens - request.held
    return CompressedContext(keys, values, after, stored.tolist())


def method(name: str) -> Method:
    """The variant as a method of the bench."""
    config = QuickMergeConfig()
    text = (
        f"{VARIANTS[name][0]}; in the model at its calibrated depth or two thirds of its layers, "
        f"logit scale {config.logit_scale:g}, epsilon {config.epsilon:g}, "
        f"protected: first {config.protect_first}, last min({config.protect_last}, K/2), special"
    )
    return Method(name, text, lambda request: compress(name, request))
