"""Head and tail of the prompt, the middle cut out: what many servers do today."""

from __future__ import annotations

import torch

from qm_vllm_eval.methods.base import Method, Request, run_again
from qm_vllm_eval.reference.reader import CompressedContext


def kept_positions(tokens: int, k: int) -> torch.Tensor:
    """Half of the budget from the head, half from the tail."""
    head = k // 2
    return torch.cat((torch.arange(head), torch.arange(max(head, tokens - (k - head)), tokens)))


def compress(request: Request) -> CompressedContext:
    """Head and tail, prefilled again."""
    return run_again(request, kept_positions(request.tokens, request.k))


METHOD = Method("truncation", "first K/2 and last K/2 tokens, prefilled again", compress)
