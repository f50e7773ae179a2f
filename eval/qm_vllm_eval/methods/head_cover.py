"""Query-blind, own tokens for every KV head: what a repetition of the document looks at.

Not in the plug-in: it costs a second, longer prefill and all layers. It shows what is left to gain
for documents that are compressed before anybody asks. The repetition follows KVzip (Kim et al.
2025); that the heads share the tokens among them is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qm_vllm.compress import average_rank
from qm_vllm.compress import score_tokens as score_evidence
from qm_vllm.config import QuickMergeConfig
from qm_vllm_eval.methods.base import Method, Request
from qm_vllm_eval.methods.quickmerge import evidence_of
from qm_vllm_eval.reference.decoder import rotate
from qm_vllm_eval.reference.reader import CompressedContext

SHARED = 0.5
"""Share of the budget that every head spends on the tokens of lowest entropy."""
HEAD, TAIL = 4, 32
"""Tokens at the two ends that every head keeps, as the plug-in protects them."""
DECAY = 0.9
"""What one more head leaves of the memory of which tokens are held already."""
ROWS = 512
"""Queries at a time."""


def repeated_attention(request: Request) -> Tensor:
    """The highest attention that any query of a second copy of the document pays to each token.

    The copy leaves out the first :data:`HEAD` tokens and stands directly behind the original.

    Returns:
        [L, KVH, S] float32, the highest over the queries and the query heads of a KV head.
    """
    decoder, prefill, count = request.decoder, request.prefill, request.tokens
    states = decoder.embed(prefill.ids[HEAD:])[None]
    rows = states.shape[1]
    own, again = torch.arange(count), torch.arange(count, count + rows)
    cos, sin = decoder.angles(again[None])
    groups = decoder.num_heads // decoder.num_kv_heads
    highest = torch.zeros(decoder.num_layers, decoder.num_kv_heads, count)
    visible = torch.ones(rows, count + rows, dtype=torch.bool).tril(count)
    for layer in range(decoder.num_layers):
        query, key, value = decoder.project(layer, states)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        keys = torch.cat((decoder.place(prefill.plain_keys[layer], own)[None], key), 2)
        values = torch.cat((prefill.values[layer][None], value), 2)
        attended = scaled_dot_product_attention(
            query, keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1),
            attn_mask=visible.to(query.device),
        )
        scale = float(decoder.layers[layer].self_attn.scaling)
        for head in range(decoder.num_heads):
            for start in range(0, rows, ROWS):
                seen = visible[start : start + ROWS].to(query.device)
                logits = query[0, head, start : start + ROWS] @ keys[0, head // groups].T
                weights = (logits.float() * scale).masked_fill(~seen, float("-inf")).softmax(-1)
                peak = weights[:, :count].amax(0).cpu()
                place = highest[layer, head // groups]
                torch.maximum(place, peak, out=place)
        states = decoder.finish_layer(layer, states, attended)
    return highest


def choose(peaks: Tensor, shared: Tensor, k: int) -> Tensor:
    """K tokens for every head; what the heads before it hold gives way.

    Args:
        peaks: [heads, S], higher = keep.
        shared: int64 positions that every head keeps, at most k.

    Returns:
        int64 [heads, k], increasing in each row.
    """
    held, rows = torch.zeros(peaks.shape[1]), []
    for peak in peaks:
        score = average_rank(peak) - held
        score[shared] = torch.inf
        kept = score.topk(k).indices.sort().values
        held = held * DECAY
        held[kept] += 1 - DECAY
        rows.append(kept)
    return torch.stack(rows)


def compress(request: Request) -> CompressedContext:
    """Keys and values of the full prefill, other tokens in every head."""
    decoder, prefill, count = request.decoder, request.prefill, request.tokens
    config = QuickMergeConfig(saliency="entropy", query_visible=False)
    entropy = score_evidence(evidence_of(request, config), config).cpu()
    head, tail = min(HEAD, request.k // 4), max(min(TAIL, request.k // 4), request.held)
    entropy[:head] = entropy[count - tail :] = torch.inf
    shared = entropy.topk(max(head + tail, round(SHARED * request.k))).indices
    peaks = request.once("repeated", lambda: repeated_attention(request))
    kept = choose(peaks.flatten(0, 1), shared, min(request.k, count))
    stored = kept[:, : kept.shape[1] - request.held]
    keys, values = [], []
    for layer, own in enumerate(stored.split(decoder.num_kv_heads)):
        index = own[..., None].expand(-1, -1, decoder.head_dim).to(decoder.device)
        placed = decoder.place(prefill.plain_keys[layer], torch.arange(count))
        keys.append(placed.gather(1, index))
        values.append(prefill.values[layer].gather(1, index))
    return CompressedContext(keys, values, count - request.held)


METHOD = Method(
    "head-cover",
    "query-blind: KV of all layers of the full prefill, own tokens for every KV head: the ends, "
    f"{SHARED:g} of K the lowest entropies, the rest by the highest attention of a repeated "
    "document, heads sharing the tokens among them",
    compress,
)
