"""How much keys stand out among those of their head: what can be found again, whoever asks.

A query finds a key by what sets it apart from the others. The leverage of a row is the share of it
that the other rows cannot explain (statistical leverage; of keys before rotation and in all heads:
Compactor, arXiv 2507.08143). Here in the heads that look things up alone, as their keys lie in the
cache (docs/decisions.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-3
"""Of the mean variance of a dimension, what is added to each: keys may lie in fewer dimensions."""
ROWS = 8192
"""Rows that are solved for at once."""


def leverage(rows: Tensor) -> Tensor:
    """Leverage scores ``diag(X (X'X + c I)^-1 X')`` of centred rows, c :data:`RIDGE` of the mean
    of the diagonal of X'X.

    Args:
        rows: [H, N, D], of each head apart.

    Returns:
        [H, N] float32 in [0, 1]; 0 where all rows of a head are equal.
    """
    centred = rows.float()
    centred = centred - centred.mean(1, keepdim=True)
    gram = centred.transpose(1, 2) @ centred
    diagonal = gram.diagonal(dim1=1, dim2=2)
    # The smallest normal number is for heads whose rows are all equal.
    ridge = (RIDGE * diagonal.mean(1, keepdim=True)).clamp_min(torch.finfo(gram.dtype).tiny)
    factor, _ = torch.linalg.cholesky_ex(gram + torch.diag_embed(ridge.expand_as(diagonal)))
    return torch.cat([
        torch.linalg.solve_triangular(factor, part.transpose(1, 2), upper=False).square().sum(1)
        for part in torch.split(centred, ROWS, 1)
    ], 1)


def standing_out(keys: Tensor, values: Tensor, heads: Tensor) -> Tensor:
    """What stands out in some KV heads of a layer: leverage times the length of the value.

    Args:
        keys: [N, KVH, D], rotated. values: [N, KVH, D].
        heads: int64 [F], those that count.

    Returns:
        [N] float32, the sum over these heads, each scaled to mean 0 and deviation 1.
    """
    own = leverage(keys[:, heads].transpose(0, 1)) * values[:, heads].float().norm(dim=-1).T
    own = own - own.mean(1, keepdim=True)
    deviation = own.square().mean(1, keepdim=True).sqrt()
    own /= deviation.clamp_min(torch.finfo(own.dtype).tiny)
    total: Tensor = own.sum(0)
    return total
