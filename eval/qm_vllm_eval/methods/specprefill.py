"""Score with a smaller model and prefill what it attends to, after SpecPrefill (Liu et al. 2025).

The smaller model is the served one cut off at half of its depth; a look-ahead, which the paper
adds, would need a speculator that can decode.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from qm_vllm_eval.methods.base import Method, Request, run_again
from qm_vllm_eval.reference.reader import CompressedContext

QUERIES = 8
POOL = 13
CHUNK = 32


def score(request: Request) -> Tensor:
    """[S], the highest smoothed attention that any head of the lower layers pays."""
    best = torch.zeros(request.tokens)
    for layer in range(request.decoder.num_layers // 2):
        heads = request.prefill.head_attention(layer, QUERIES).mean(1).cpu()
        smooth = avg_pool1d(heads[:, None], POOL, 1, POOL // 2, count_include_pad=False)
        best = torch.maximum(best, smooth[:, 0].amax(0))
    return best


def compress(request: Request) -> CompressedContext:
    """The best chunks of the prompt, prefilled with the positions they had."""
    scores, tokens = request.once("specprefill", lambda: score(request)), request.tokens
    starts = list(range(0, tokens, CHUNK))
    means = torch.stack([scores[start : start + CHUNK].mean() for start in starts])
    kept = list(range(tokens - request.held, tokens))
    for chunk in means.sort(descending=True, stable=True).indices.tolist():
        room = request.k - len(kept)
        inside = range(starts[chunk], min(starts[chunk] + CHUNK, tokens - request.held))
        # The last chunk is cut to its best tokens, so that the budget is used up.
        kept += sorted(inside, key=lambda i: -float(scores[i]))[:room]
        if len(kept) >= request.k:
            break
    return run_again(request, torch.tensor(sorted(kept)), compact=False)


METHOD = Method(
    "specprefill-like",
    f"attention of the last {QUERIES} queries in the lower half of the layers, max over heads "
    f"and layers, average pool {POOL}, chunks of {CHUNK}, prefilled with their own positions",
    compress,
)
