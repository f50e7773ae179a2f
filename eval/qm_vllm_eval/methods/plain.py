"""The whole prompt: the upper end of every comparison."""

from __future__ import annotations

import torch

from qm_vllm_eval.methods.base import Budget, Method, Request, keep_entries
from qm_vllm_eval.reference.reader import CompressedContext


def compress(request: Request) -> CompressedContext:
    """KV of every token."""
    return keep_entries(request, torch.arange(request.tokens))


METHOD = Method("plain", "the full prompt, nothing dropped", compress, budget=Budget.FULL)
