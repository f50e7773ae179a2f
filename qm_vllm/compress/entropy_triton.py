"""The sums behind the attention entropy as one Triton kernel, for half-precision rows on CUDA.

A tile of cosines is a matrix product; its exponentials are summed while they are in registers, so
that nothing of size N x N is written. As the matrix is symmetric, a tile above the diagonal
serves its rows and its columns. No running maximum is needed: the largest logit of a row is
its diagonal entry, which is ``logit_scale``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, DEPTH, WARPS, STAGES = 128, 64, 8, 4
BAND = 128
"""Tile rows of one launch; bounds the memory of the sums."""
_TOGETHER = 8  # tiles of as many rows run at a time, so that their columns stay in the cache


@triton.jit  # type: ignore[untyped-decorator]
def _scale_rows(  # type: ignore[no-untyped-def]
    source, target, inverse, width, stride, WIDTH: tl.constexpr
):
    """A row times a power of two, largest entry in [0.5, 1), and 1 / its norm (0: all zeros)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    peak = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, width, WIDTH):
        inside = start + columns < width
        x = tl.load(source + row * stride + start + columns, mask=inside, other=0.0)
        peak = tl.maximum(peak, tl.abs(x.to(tl.float32)))
    top = tl.max(peak, 0)
    exponent = ((top.to(tl.int32, bitcast=True) >> 23) & 255) - 126
    exponent = tl.minimum(exponent, 126)
    factor = tl.where(top > 0, ((127 - exponent) << 23).to(tl.float32, bitcast=True), 1.0)
    total = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, width, WIDTH):
        inside = start + columns < width
        x = tl.load(source + row * stride + start + columns, mask=inside, other=0.0)
        scaled = (x.to(tl.float32) * factor).to(target.dtype.element_ty)
        tl.store(target + row * width + start + columns, scaled, mask=inside)
        total += scaled.to(tl.float32) * scaled.to(tl.float32)
    norm = tl.sqrt(tl.sum(total, 0))
    tl.store(inverse + row, tl.where(top > 0, 1.0 / norm, 0.0))


@triton.jit  # type: ignore[untyped-decorator]
def _tile_sums(  # type: ignore[no-untyped-def]
    rows, inverse, weights, across_sums, down_sums, count, width, scale, first, band,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr, TOGETHER: tl.constexpr, EVEN: tl.constexpr,
):
    """One tile (i, j), j >= i, of a band of tile rows: sums over its columns go to
    across_sums[:, j, rows of i], sums over its rows to down_sums[:, i, rows of j]."""
    tiles = tl.cdiv(count, BLOCK)
    place = tl.program_id(0)
    inner = place % (TOGETHER * (tiles - first))
    local = place // (TOGETHER * (tiles - first)) * TOGETHER + inner % TOGETHER
    i = first + local
    j = first + inner // TOGETHER
    if (local >= band) | (j < i):
        return
    upper = i * BLOCK + tl.arange(0, BLOCK)
    lower = j * BLOCK + tl.arange(0, BLOCK)
    depth = tl.arange(0, DEPTH)
    above = (upper % count).to(tl.int64)  # rows beyond the last are computed and thrown away
    below = (lower % count).to(tl.int64)
    left = rows + above[:, None] * width + depth[None, :]
    right = rows + below[None, :] * width + depth[:, None]
    dots = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, width, DEPTH):
        if EVEN:
            a = tl.load(left)
            b = tl.load(right)
        else:
            a = tl.load(left, mask=start + depth[None, :] < width, other=0.0)
            b = tl.load(right, mask=start + depth[:, None] < width, other=0.0)
        dots = tl.dot(a, b, dots, input_precision="ieee")
        left += DEPTH
        right += DEPTH
    inside_upper, inside_lower = upper < count, lower < count
    across = tl.load(inverse + upper, mask=inside_upper, other=0.0)
    down = tl.load(inverse + lower, mask=inside_lower, other=0.0)
    logits = dots * across[:, None] * down[None, :] * scale - scale
    exps = tl.exp(logits)
    apart = (upper[:, None] != lower[None, :]) & inside_upper[:, None] & inside_lower[None, :]
    exps = tl.where(apart, exps, 0.0)
    moments = exps * logits
    weight = tl.load(weights + lower, mask=inside_lower, other=0.0)[None, :]
    height = band * BLOCK
    cell = across_sums + j.to(tl.int64) * height + local * BLOCK + tl.arange(0, BLOCK)
    tl.store(cell, tl.sum(exps * weight, 1))
    tl.store(cell + tl.cast(tiles, tl.int64) * height, tl.sum(moments * weight, 1))
    if j > i:
        other = tl.load(weights + upper, mask=inside_upper, other=0.0)[:, None]
        spot = down_sums + tl.cast(local, tl.int64) * count + lower
        tl.store(spot, tl.sum(exps * other, 0), mask=inside_lower)
        tl.store(
            spot + tl.cast(band, tl.int64) * count, tl.sum(moments * other, 0), mask=inside_lower
        )


@torch.library.custom_op("qm_vllm::scaled_rows", mutates_args=())
def scaled_rows(states: Tensor) -> tuple[Tensor, Tensor]:
    """Rows times powers of two, largest entry in [0.5, 1), and 1 / norm (0 for a row of zeros).

    Args:
        states: [N, D], float16, bfloat16 or float32, rows contiguous.

    Returns:
        [N, D] in the states' dtype and [N] float32.
    """
    count, width = states.shape
    if states.stride(1) != 1:
        states = states.contiguous()
    target = torch.empty((count, width), dtype=states.dtype, device=states.device)
    inverse = torch.empty(count, dtype=torch.float32, device=states.device)
    size = min(4096, triton.next_power_of_2(width))
    _scale_rows[(count,)](states, target, inverse, width, states.stride(0), WIDTH=size)
    return target, inverse


@scaled_rows.register_fake
def _(states: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(states), states.new_empty(states.shape[0], dtype=torch.float32)


@torch.library.custom_op("qm_vllm::off_diagonal_sums", mutates_args=())
def off_diagonal_sums(
    rows: Tensor, inverse: Tensor, weights: Tensor, logit_scale: float
) -> tuple[Tensor, Tensor]:
    """``sum_j e_ij w_j`` and ``sum_j e_ij d_ij w_j`` over j != i; the same on every call.

    ``d_ij = logit_scale (cos_ij - 1)``, ``e_ij = exp(d_ij)``. Memory: at most 2 KiB a row.

    Args:
        rows: [N, D] and
        inverse: [N], as :func:`scaled_rows` makes them.
        weights: [N] float32.

    Returns:
        Two [N] float64.
    """
    count, width = rows.shape
    tiles = triton.cdiv(count, BLOCK)
    sums = torch.zeros((2, tiles * BLOCK), dtype=torch.float64, device=rows.device)
    for first in range(0, tiles, BAND):
        band = min(BAND, tiles - first)
        # Zeros, as tiles below the diagonal write nothing.
        across, down = (
            torch.zeros((2, *shape), dtype=torch.float32, device=rows.device)
            for shape in ((tiles, band * BLOCK), (band, count))
        )
        grid = (triton.cdiv(band, _TOGETHER) * _TOGETHER * (tiles - first),)
        _tile_sums[grid](
            rows, inverse, weights, across, down, count, width, logit_scale, first, band,
            BLOCK=BLOCK, DEPTH=DEPTH, TOGETHER=_TOGETHER, EVEN=width % DEPTH == 0,
            num_warps=WARPS, num_stages=STAGES,
        )
        top = first * BLOCK
        sums[:, top : top + band * BLOCK] += across.sum(1, dtype=torch.float64)
        sums[:, :count] += down.sum(1, dtype=torch.float64)
    return sums[0, :count].clone(), sums[1, :count].clone()


@off_diagonal_sums.register_fake
def _(
    rows: Tensor, inverse: Tensor, weights: Tensor, logit_scale: float
) -> tuple[Tensor, Tensor]:
    empty = rows.new_empty(rows.shape[0], dtype=torch.float64)
    return empty, torch.empty_like(empty)
