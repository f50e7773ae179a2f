"""Fused norms, activation and rotary for the dense pass.

vLLM leaves these operations to its compiler: called outside a compiled model, as the dense pass
does, they run as chains of small torch operations. For the moment of a pass each such module
answers with vLLM's own fused kernel; what is not known here stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

FORWARD = "_forward_method"
CACHE = "cos_sin_cache"
"""A rotary embedding's table of angles."""


def fused_forwards(layer: nn.Module) -> list[tuple[Any, Callable[..., Any]]]:
    """Modules of a decoder layer whose forward has a fused stand-in, with the stand-in."""
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.model_executor.layers.layernorm import RMSNorm

    kernels = torch.ops._C
    found: list[tuple[Any, Callable[..., Any]]] = []
    module: Any
    for module in layer.modules():
        if not hasattr(module, FORWARD):
            continue
        if type(module) is RMSNorm and hasattr(kernels, "fused_add_rms_norm"):
            if module.has_weight and module.variance_size_override is None and _rounds(
                module.weight.dtype, module.weight.device
            ):
                found.append((module, _rms_norm(module)))
        elif type(module) is SiluAndMul:
            on_cpu = not hasattr(module, "op")
            found.append((module, _silu_and_mul if on_cpu else module.forward_cuda))
    return found


def rotary_forward(
    rotary: Any, device: torch.device, table: torch.Tensor | None = None
) -> Callable[..., Any]:
    """The rotary embedding's kernel form, also where vLLM runs the model compiled.

    Args:
        table: answers for the module's own cache for the moment of each call; positions are
            then rows of it (:func:`rotary_table`).
    """
    kind = "forward_cpu" if device.type == "cpu" else "forward_cuda"
    own = getattr(rotary, kind, rotary)
    if table is None:
        return own  # type: ignore[no-any-return]

    def forward(*inputs: torch.Tensor) -> Any:
        buffers = rotary._buffers
        kept, buffers[CACHE] = buffers[CACHE], table
        try:
            return own(*inputs)
        finally:
            buffers[CACHE] = kept

    return forward


def rotary_table(rotary: Any, positions: torch.Tensor) -> torch.Tensor | None:
    """Rows [K, rotary_dim] of cosines and sines at positions [K], which may be negative.

    A rotation by -p is the one by p with the sine's sign turned, under any scaling of the
    frequencies. None where the module keeps its angles in another way.
    """
    cache = getattr(rotary, "_buffers", {}).get(CACHE)
    if cache is None or cache.ndim != 2:
        return None
    table: torch.Tensor = cache[positions.abs().to(cache.device)].clone()
    half = table.shape[1] // 2
    table[:, half:] *= torch.where(positions < 0, -1, 1).to(table)[:, None]
    return table


@lru_cache
def _rounds(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the norm's kernel rounds its sums to the nearest number.

    vLLM's build for AVX2 cuts bfloat16 off towards zero: states shrink a little in every layer.
    """
    if device.type != "cpu":
        return True
    generator = torch.Generator().manual_seed(0)
    x, residual = torch.randn(2, 4, 256, generator=generator).to(dtype)
    nearest = (x.double() + residual.double()).to(dtype)
    torch.ops._C.fused_add_rms_norm(x, residual, torch.ones(256, dtype=dtype), 1e-5)
    return torch.equal(residual, nearest)


def _rms_norm(module: Any) -> Callable[..., Any]:
    def forward(x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        weight, epsilon = module.weight.data, module.variance_epsilon
        if residual is not None and x.is_contiguous() and residual.is_contiguous():
            torch.ops._C.fused_add_rms_norm(x, residual, weight, epsilon)
            return x, residual
        if residual is not None:
            return module.forward_native(x, residual)
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        out = torch.empty_like(rows)
        torch.ops._C.rms_norm(out, rows, weight, epsilon)
        return out.view(x.shape)

    return forward


def _silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return F.silu(x[..., :half]).mul_(x[..., half:])


def positions_of(rotary: Any) -> int | None:
    """How many positions a rotary embedding's table of angles knows; None: it has no table."""
    cache = getattr(rotary, "_buffers", {}).get(CACHE)
    return None if cache is None else int(cache.shape[0])
