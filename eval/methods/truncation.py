"""Head and tail of the prompt, the middle cut out: what many servers do today."""

from __future__ import annotations

import torch

from qm_vllm.eval.methods.base import Method, Request, run_again
from qm_vllm.eval.reference.reader import CompressedContext


def compress(request: Request) -> CompressedContext:
    """Half of the budget from the head, half from the tail, prefilled again."""
    head = request.k // 2
    tail = request.tokens - (request.k - head)
    kept = torch.cat((torch.arange(head), torch.arange(max(head, tail), request.tokens)))
    return run_again(request, kept)


METHOD = Method("truncation", "first K/2 and last K/2 tokens, prefilled again", compress)
