"""Attention that queries to come will pay if they are Gaussian (Devoto et al. 2025), a control.

Pure tensors of one layer. Written here, so that it can be combined with what the plug-in chooses;
kvpress' own stands in the bench beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

SINKS = 4
"""First positions: every head attends to them whatever it looks for, so they say nothing."""


def expected_attention(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """``softmax(k . mu * scale + k . Sigma k * scale^2 / 2)`` times the length of the value.

    Mean and covariance are those of the queries given; the first :data:`SINKS` tokens are left out
    and score nothing.

    Args:
        queries: [W, H, D], turned to the mean over the positions to come (see :func:`ahead`).
        keys: [N, KVH, D], rotated. values: [N, KVH, D].
        scale: of the logits.

    Returns:
        [KVH, N] float32, mean over the query heads of a KV head.
    """
    rows = queries.float() * scale
    mean = rows.mean(0)
    grouped = keys.float().transpose(0, 1)
    each = rows.shape[1] // keys.shape[1]
    centred = (rows - mean).transpose(0, 1)
    spread = (centred.transpose(1, 2) @ centred / len(rows)).unflatten(0, (-1, each))
    logits = torch.einsum("gnd,ged->gen", grouped, mean.unflatten(0, (-1, each)))
    logits += torch.einsum("gnd,gedf,gnf->gen", grouped, spread, grouped) / 2
    logits[..., :SINKS] = float("-inf")
    return logits.softmax(-1).mean(1) * values.float().norm(dim=-1).T


def ahead(queries: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries before rotation, turned to the mean over positions to come.

    Args:
        queries: [W, H, D], halves layout (RoPE, Su et al. 2021).
        cos, sin: [D], means over these positions.
    """
    half = queries.shape[-1] // 2
    turned = torch.cat((-queries[..., half:], queries[..., :half]), dim=-1)
    return queries * cos + turned * sin
