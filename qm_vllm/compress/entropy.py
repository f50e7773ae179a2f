"""Attention entropy of eq. 1-2 in O(N) memory, for rows of any width."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal, overload

import torch
from torch import Tensor

from qm_vllm.compress.entropy_raw import raw_entropy

FLOAT32_MAX_SCALE = 24.0
"""Above this logit scale the rounding of a float32 cosine would break the 1e-5 promise, so
that the products run in float64."""

ROWS = 1024
"""Rows that are scaled at once."""
TILE, PANEL = 512, 8
"""Rows of a step, and tiles side by side in one operation: fewer, larger kernels."""
_DEPTH = 32  # a float32 dot product is a sum of up to 8 shorter ones, of this length or more
_PARTS = 8


@overload
def attention_entropy(
    states: Tensor, logit_scale: float, *, normalize_rows: bool = ..., tile: int = ...,
    incoming: Literal[False] = ...,
) -> Tensor: ...


@overload
def attention_entropy(
    states: Tensor, logit_scale: float, *, normalize_rows: bool = ..., tile: int = ...,
    incoming: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def attention_entropy(
    states: Tensor,
    logit_scale: float,
    *,
    normalize_rows: bool = True,
    tile: int = TILE,
    incoming: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Entropy of each token's bidirectional self-attention (paper eq. 1-2), in nats.

    ``A = softmax(logit_scale * cos(x_i, x_j))`` over all j, the diagonal included, and
    ``H_i = -sum_j A_ij log A_ij``. The N x N matrix is never held: it is symmetric, so only
    the upper triangle is computed, a panel of rows at a time. Relative error at most 1e-5
    against float64 for any N, D and tile. The diagonal is each row's largest logit, so H is
    assembled from the mass off the diagonal, which stays accurate when H is near zero.

    A row of zeros has no direction: its logits are all 0, hence H = log N.

    Args:
        states: [N, D], any floating type; N >= 1. Products run in float32, or in float64 if
            the states are float64 or logit_scale exceeds :data:`FLOAT32_MAX_SCALE`. For bf16
            states on a CPU, and half precision on CUDA, they use the units for these with
            float32 sums: products of such values are exact there, so nothing is lost (norms
            divide afterwards).
        logit_scale: scale of the cosine, > 0 (sqrt(D) in eq. 1 for rows of unit RMS).
        normalize_rows: False gives eq. 1 to the letter, logits ``x_i . x_j / sqrt(D)`` of the
            raw rows in float64; logit_scale is then unused.
        tile: rows per step, >= 1; two buffers of tile x 8 tile cells are held. Changes speed
            and memory, not the result beyond rounding.
        incoming: also return the entropy of each token's incoming attention: of column i of
            A, normalised to sum to one (paper, appendix A).

    Returns:
        [N] float32, or with ``incoming`` a pair of [N] float32 (outgoing, incoming).

    Raises:
        ValueError: states are not a non-empty floating [N, D], or an argument is out of range.
    """
    check_states(states)
    if tile < 1:
        raise ValueError(f"tile={tile} must be at least 1")
    if not normalize_rows:
        return raw_entropy(states, tile=tile, incoming=incoming)
    if not (math.isfinite(logit_scale) and logit_scale > 0):
        raise ValueError(f"logit_scale={logit_scale} must be finite and greater than 0")
    double = states.dtype == torch.float64 or logit_scale > FLOAT32_MAX_SCALE
    sums, zero = _summing(states, logit_scale, tile, double)
    count = states.shape[0]
    ones = torch.ones(count, 1, dtype=torch.float64, device=states.device)
    mass, moment = (m[:, 0] for m in sums(ones))
    log_sum = torch.log1p(mass)
    outgoing = log_sum - moment / (1 + mass)
    outgoing = torch.where(zero, math.log(count), outgoing).clamp_min(0).float()
    if not incoming:
        return outgoing
    # -log of column i: log_sum_j - d_ij with d_ij = logit - logit_scale, and log N in a row j
    # of zeros. Taken relative to the diagonal entry, the column's mass is again 1 + rest.
    weight = torch.exp(-log_sum).where(~zero, 0.0)
    mass, moment = sums(torch.stack((weight, weight * log_sum), 1))
    shift = log_sum.where(~zero, math.log(count))
    scale = torch.exp(shift)
    flat = scale / count * (zero.sum() - zero.double())  # rows of zeros other than i itself
    rest = scale * mass[:, 0] + flat
    first = scale * (moment[:, 0] - mass[:, 1]) + shift * rest - math.log(count) * flat
    return outgoing, (torch.log1p(rest) - first / (1 + rest)).clamp_min(0).float()


def _summing(
    states: Tensor, logit_scale: float, tile: int, double: bool
) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Tensor]:
    """The fastest way to :func:`_off_diagonal` on this device, as a function of the float64
    weights [N, C]; and the bool [N] that marks the rows of zeros."""
    half = states.dtype in (torch.bfloat16, torch.float16) and not double
    if half and states.device.type == "cuda" and find_spec("triton") is not None:
        from qm_vllm.compress.entropy_triton import off_diagonal_sums, scaled_rows

        rows, norms = scaled_rows(states)

        def fused(weights: Tensor) -> tuple[Tensor, Tensor]:
            columns = [
                off_diagonal_sums(rows, norms, column.float().contiguous(), logit_scale)
                for column in weights.unbind(1)
            ]
            mass, moment = zip(*columns, strict=True)
            return torch.stack(mass, 1), torch.stack(moment, 1)

        return fused, norms == 0
    inverse = None
    if states.dtype == torch.bfloat16 and states.device.type == "cpu" and not double:
        unit, inverse, zero = _scaled_rows(states)
    else:
        unit, zero = unit_rows(states, torch.float64 if double else torch.float32)
    return (
        lambda weights: _off_diagonal(unit, logit_scale, weights.to(unit.dtype), tile, inverse),
        zero,
    )


def check_states(states: Tensor) -> None:
    """Raise ValueError unless states are a floating [N, D] with N >= 1 and D >= 1."""
    if states.ndim != 2 or states.shape[0] < 1 or states.shape[1] < 1:
        raise ValueError(f"states must be [N, D] with N, D >= 1, not {list(states.shape)}")
    if not states.is_floating_point():
        raise ValueError(f"states must be floating point, not {states.dtype}")


def unit_rows(states: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Rows divided by their L2 norm.

    The quotients are taken in float64 and rounded once.

    Args:
        states: [N, D], any floating type.
        dtype: type of the result.

    Returns:
        [N, D] in dtype with rows of norm 1 (rows of zeros stay zeros), and a bool [N] that
        marks the rows of zeros.
    """
    unit = torch.empty(states.shape, dtype=dtype, device=states.device)
    zero = torch.empty(states.shape[0], dtype=torch.bool, device=states.device)
    for start in range(0, states.shape[0], ROWS):
        rows = states[start : start + ROWS].double()
        peak = rows.abs().amax(1, keepdim=True)
        blank = peak == 0
        rows = rows / peak.where(~blank, 1.0)
        norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        unit[start : start + ROWS] = rows / norm.where(~blank, 1.0)
        zero[start : start + ROWS] = blank[:, 0]
    return unit, zero


def _scaled_rows(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """bf16 rows as float32, scaled by powers of two to a largest entry in [0.5, 1).

    The scaling is exact and keeps the products in range. Returns rows [N, D], 1 / norm [N]
    (0 for a row of zeros) and the bool [N] that marks the rows of zeros.
    """
    rows = torch.empty(states.shape, device=states.device)
    zero = torch.empty(states.shape[0], dtype=torch.bool, device=states.device)
    for start in range(0, states.shape[0], ROWS):
        part = states[start : start + ROWS]
        peak = part.abs().amax(1).float()
        zero[start : start + ROWS] = peak == 0
        exponent = torch.frexp(peak).exponent
        rows[start : start + ROWS] = torch.ldexp(part.float(), -exponent[:, None])
    norm = torch.linalg.vector_norm(rows, dim=1).where(~zero, 1.0)
    return rows, torch.where(zero, 0.0, 1 / norm), zero


def _off_diagonal(
    unit: Tensor, logit_scale: float, weights: Tensor, tile: int, inverse: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted sums over j != i of e_ij and of e_ij d_ij.

    d_ij = logit_scale * (cos_ij - 1) and e_ij = exp(d_ij).

    Args:
        unit: [N, D] rows of norm 1 (or 0), float32 or float64.
        weights: [N, C], the weight of each j in each of C sums.
        inverse: [N] 1 / norm of rows that hold bf16 values and are not of norm 1.

    Returns:
        Two [N, C] float64: ``sum_j e_ij w_jc`` and ``sum_j e_ij d_ij w_jc``.
    """
    count, width = weights.shape
    mass = torch.zeros(count, width, dtype=torch.float64, device=unit.device)
    moment = torch.zeros_like(mass)
    panel = tile * PANEL
    cells = min(tile, count) * min(panel, count)
    logits_buffer = torch.empty(cells, dtype=unit.dtype, device=unit.device)
    exp_buffer = torch.empty_like(logits_buffer)
    with _full_precision():
        for top in range(0, count, tile):
            rows = unit[top : top + tile]
            height = rows.shape[0]
            for left in range(top, count, panel):
                columns = unit[left : left + panel]
                shape = (height, columns.shape[0])
                logits = logits_buffer[: shape[0] * shape[1]].view(shape)
                exps = exp_buffer[: shape[0] * shape[1]].view(shape)
                if inverse is None:
                    _products(rows, columns, logits)
                    logits.sub_(1).mul_(logit_scale)
                else:
                    _bf16_products(rows, columns, logits)
                    logits.mul_(inverse[left : left + panel] * logit_scale)
                    logits.mul_(inverse[top : top + tile, None]).sub_(logit_scale)
                torch.exp(logits, out=exps)
                if left == top:
                    exps[:, :height].fill_diagonal_(0)
                logits.mul_(exps)
                right = weights[left : left + panel]
                mass[top : top + tile] += exps @ right
                moment[top : top + tile] += logits @ right
                # The block on the diagonal holds both triangles; the rest is mirrored.
                skip = height if left == top else 0
                if skip < shape[1]:
                    down = weights[top : top + tile]
                    mass[left + skip : left + panel] += exps[:, skip:].T @ down
                    moment[left + skip : left + panel] += logits[:, skip:].T @ down
    return mass, moment


def _products(rows: Tensor, columns: Tensor, out: Tensor) -> None:
    """Write ``rows columns^T`` to out; in float32 as a sum of short products.

    One long float32 dot product per cosine errs by up to 6e-7, which logit_scale multiplies;
    short ones stay near 1e-7 and cost about 15 % more time.
    """
    width = rows.shape[1]
    depth = max(_DEPTH, -(-width // _PARTS)) if rows.dtype == torch.float32 else width
    torch.mm(rows[:, :depth], columns[:, :depth].T, out=out)
    for start in range(depth, width, depth):
        stop = start + depth
        torch.addmm(out, rows[:, start:stop], columns[:, start:stop].T, out=out)


def _bf16_products(rows: Tensor, columns: Tensor, out: Tensor) -> None:
    """Write ``rows columns^T`` of bf16 values held in float32 to out, with float32 sums."""
    mkldnn: Any = torch.backends.mkldnn
    matmul = mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        torch.mm(rows, columns.T, out=out)
    finally:
        matmul.fp32_precision = before


@contextmanager
def _full_precision() -> Iterator[None]:
    """Keep float32 products in float32, whatever TF32 or bf16 shortcut the process allows."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
