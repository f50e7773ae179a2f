"""KV in eight bits: half of the memory by another road, alone and on top of QuickMerge."""

from __future__ import annotations

import torch

from qm_vllm_eval.methods import plain, quickmerge
from qm_vllm_eval.methods.base import Budget, Method, Request
from qm_vllm_eval.reference.reader import CompressedContext


def rounded(context: CompressedContext) -> CompressedContext:
    """Keys and values as float8_e4m3 holds them, without a scale (vLLM's default of 1)."""
    def once(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return [t.clamp(-448, 448).to(torch.float8_e4m3fn).to(t.dtype) for t in tensors]

    return CompressedContext(
        once(context.keys), once(context.values), context.next_position, context.kept, 1.0
    )


def compress_plain(request: Request) -> CompressedContext:
    """Every token, in fp8."""
    return rounded(plain.compress(request))


def compress_merged(request: Request) -> CompressedContext:
    """QuickMerge's entries, in fp8."""
    return rounded(quickmerge.compress("quickmerge", request))


PLAIN = Method(
    "fp8", "every token, keys and values in float8_e4m3, scale 1", compress_plain,
    budget=Budget.FULL,
)
MERGED = Method(
    "quickmerge-fp8", "quickmerge, keys and values in float8_e4m3, scale 1", compress_merged
)
