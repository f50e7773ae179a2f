"""Random tokens: what every score has to beat."""

from __future__ import annotations

import torch

from qm_vllm_eval.methods.base import Method, Request, keep_entries, top
from qm_vllm_eval.reference.reader import CompressedContext

SINKS = 4


def compress(request: Request) -> CompressedContext:
    """The first four and random other positions; one draw a sample, nested over budgets."""
    generator = torch.Generator().manual_seed(request.seed)
    scores = torch.rand(request.tokens, generator=generator)
    scores[:SINKS] = 2
    return keep_entries(request, top(scores, request.k, request.held))


METHOD = Method(
    "random",
    f"first {SINKS} and random tokens, KV of all layers of the full prefill, own positions",
    compress,
)
