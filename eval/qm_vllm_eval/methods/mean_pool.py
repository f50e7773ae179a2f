"""Mean pooling: runs of neighbours become their mean, inside the model as QuickMerge does it."""

from __future__ import annotations

import torch
from torch import Tensor

from qm_vllm.config import QuickMergeConfig
from qm_vllm.layers import encoder_depth
from qm_vllm_eval.methods.base import Method, Request
from qm_vllm_eval.reference.reader import CompressedContext

SINKS = 4


def runs(tokens: int, k: int) -> Tensor:
    """Group of each token, 0..k-1: the first four alone where k allows, then even runs."""
    alone = min(SINKS, k - 1)
    rest, groups = tokens - alone, k - alone
    return torch.cat((torch.arange(alone), alone + torch.arange(rest) * groups // rest))


def compress(request: Request) -> CompressedContext:
    """Means of keys and values below E; the layers from E up run over the mean states."""
    decoder, prefill = request.decoder, request.prefill
    depth = encoder_depth(QuickMergeConfig(), decoder.num_layers)
    tokens, k = request.tokens - request.held, request.k - request.held
    groups = runs(tokens, min(k, tokens))
    count = int(groups[-1]) + 1
    sizes = torch.bincount(groups, minlength=count).float()
    positions = torch.arange(count)

    def mean(rows: Tensor) -> Tensor:
        """Mean over the tokens of each group; [..., N, d] to [..., K, d]."""
        total = torch.zeros(*rows.shape[:-2], count, rows.shape[-1], device=rows.device)
        total.index_add_(-2, groups.to(rows.device), rows[..., :tokens, :].float())
        return (total / sizes[:, None].to(rows.device)).to(rows.dtype)

    keys = [decoder.place(mean(prefill.plain_keys[i]), positions) for i in range(depth)]
    values = [mean(prefill.values[i]) for i in range(depth)]
    _, upper, _ = decoder.run(mean(prefill.states[depth]), depth, decoder.num_layers)
    for plain, value in upper:
        keys.append(decoder.place(plain, positions))
        values.append(value)
    return CompressedContext(keys, values, count)


METHOD = Method(
    "mean-pool",
    f"first {SINKS} alone, even runs of the rest averaged; in the model at two thirds of its depth",
    compress,
)
