"""Every n-th token."""

from __future__ import annotations

import torch
from torch import Tensor

from qm_vllm_eval.methods.base import Method, Request, keep_entries
from qm_vllm_eval.reference.reader import CompressedContext


def spread(tokens: int, k: int) -> Tensor:
    """k increasing positions from 0 to tokens - 1, evenly spaced."""
    if k == 1:
        return torch.tensor([tokens - 1])
    return torch.arange(k) * (tokens - 1) // (k - 1)


def compress(request: Request) -> CompressedContext:
    """Evenly spaced positions, the first and the last among them."""
    return keep_entries(request, spread(request.tokens, min(request.k, request.tokens)))


METHOD = Method(
    "even", "evenly spaced tokens, KV of all layers of the full prefill, own positions", compress
)
