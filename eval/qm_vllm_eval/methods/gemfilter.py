"""Select by one layer's attention and run again, after GemFilter (Shi et al. 2024)."""

from __future__ import annotations

from torch.nn.functional import max_pool1d

from qm_vllm_eval.methods.base import Method, Request, run_again, top
from qm_vllm_eval.reference.reader import CompressedContext

FILTER_DEPTH = 0.63
"""The filter layer as a share of the depth: layer 19 of 30."""
QUERIES = 32
POOL = 5


def compress(request: Request) -> CompressedContext:
    """The tokens that the last queries attend most in the filter layer, prefilled again."""
    layer = round(FILTER_DEPTH * request.decoder.num_layers)
    paid = request.once("gemfilter", lambda: request.prefill.attention(layer, QUERIES).mean(0))
    scores = max_pool1d(paid[None, None], POOL, stride=1, padding=POOL // 2)[0, 0]
    return run_again(request, top(scores, request.k, request.held))


METHOD = Method(
    "gemfilter-like",
    f"attention of the last {QUERIES} queries in the layer at {FILTER_DEPTH:.0%} of the depth, "
    f"max-pool {POOL}, kept tokens prefilled again at new positions",
    compress,
)
