"""Attention entropy from the log-sum-exp of one flash-attention call."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qm_vllm.compress.entropy import check_states, unit_rows

MAX_WIDTH = 256
"""Widest rows that the flash kernels take."""


def attention_entropy_lse(states: Tensor, logit_scale: float) -> Tensor:
    """Entropy of eq. 1-2 for narrow rows: ``H_i = LSE_i - logit_scale * u_i . o_i``.

    With q = k = v = the unit rows u, o is the attention output and LSE the log-sum-exp that
    the kernel returns: one ordinary attention call, O(N) memory. The difference of two
    numbers near logit_scale, so that the error is about 1e-6 * logit_scale absolute, not
    relative: use :func:`~qm_vllm.compress.entropy.attention_entropy` where entropies near
    zero must be told apart.

    CPU: the flash kernel in float32. CUDA: the memory-efficient kernel in float32 (the flash
    kernel there takes half precision only).

    Args:
        states: [N, D], any floating type, N >= 1, D <= :data:`MAX_WIDTH`.
        logit_scale: scale of the cosine, > 0.

    Returns:
        [N] float32, in nats.

    Raises:
        ValueError: the rows are too wide, the device has no such kernel, or an argument is
            out of range.
    """
    check_states(states)
    if not (math.isfinite(logit_scale) and logit_scale > 0):
        raise ValueError(f"logit_scale={logit_scale} must be finite and greater than 0")
    count, width = states.shape
    if width > MAX_WIDTH:
        raise ValueError(
            f"rows of width {width} exceed the flash kernel's {MAX_WIDTH}; "
            "use attention_entropy, which takes any width"
        )
    unit, _ = unit_rows(states)
    if unit.device.type == "cpu":
        rows = unit[None, None]
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            rows, rows, rows, scale=logit_scale
        )[:2]
    elif unit.device.type == "cuda":
        rows = torch.nn.functional.pad(unit, (0, -width % 8))[None, None]
        output, lse = torch.ops.aten._scaled_dot_product_efficient_attention(
            rows, rows, rows, None, True, scale=logit_scale
        )[:2]
    else:
        raise ValueError(f"no flash kernel on {unit.device.type}; use attention_entropy")
    matched = (unit.double() * output.reshape(count, -1)[:, :width]).sum(1)
    log_sum = lse.reshape(-1)[:count].double()
    entropy: Tensor = log_sum - logit_scale * matched
    return entropy.clamp_min(0).float()
