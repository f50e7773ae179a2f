"""Eq. 1-2 to the letter: softmax over raw, unnormalised rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def raw_entropy(
    states: Tensor, *, tile: int = 512, incoming: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Entropy of ``softmax(X X^T / sqrt(D))`` per row (paper eq. 1-2), in nats.

    An online softmax over tiles in float64: raw residual streams give logits in the
    thousands, whose rounding in float32 would be larger than the entropies. For comparison
    with the paper, not for the serving path.

    Args:
        states: [N, D], any floating type; N >= 1.
        tile: rows and columns of one tile, >= 1.
        incoming: also return the entropy of each normalised column (appendix A).

    Returns:
        [N] float32, or with ``incoming`` a pair of [N] float32 (outgoing, incoming).
    """
    rows = states.double()
    bias = torch.zeros(rows.shape[0], dtype=torch.float64, device=rows.device)
    peak, mass, moment = _online(rows, bias, tile)
    outgoing = _entropy(mass, moment)
    if not incoming:
        return outgoing
    _, mass, moment = _online(rows, -(peak + torch.log1p(mass)), tile)
    return outgoing, _entropy(mass, moment)


def _entropy(mass: Tensor, moment: Tensor) -> Tensor:
    return (torch.log1p(mass) - moment / (1 + mass)).clamp_min(0).float()


def _online(rows: Tensor, bias: Tensor, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """Online softmax statistics of the logits ``rows rows^T / sqrt(D) + bias_j``.

    Returns:
        Three [N] float64: the largest logit m of each row, and over all the others
        ``sum exp(l - m)`` and ``sum exp(l - m) (l - m)``. One largest logit is left out of
        the sums, so that they stay accurate where it holds nearly all the mass.
    """
    count, width = rows.shape
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for top in range(0, count, tile):
        block = rows[top : top + tile] / math.sqrt(width)
        total: tuple[Tensor, Tensor, Tensor] | None = None
        for left in range(0, count, tile):
            logits = block @ rows[left : left + tile].T + bias[left : left + tile]
            peak, where = logits.max(dim=1, keepdim=True)
            logits.sub_(peak)
            exps = logits.exp().scatter_(1, where, 0.0)
            moment = logits.mul_(exps).sum(1)
            part = (peak[:, 0], exps.sum(1), moment)
            total = part if total is None else _join(total, part)
        assert total is not None
        parts.append(total)
    peaks, masses, moments = zip(*parts, strict=True)
    return torch.cat(peaks), torch.cat(masses), torch.cat(moments)


def _join(
    one: tuple[Tensor, Tensor, Tensor], two: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics of two sets of logits taken together."""
    swap = two[0] > one[0]
    high = [torch.where(swap, b, a) for a, b in zip(one, two, strict=True)]
    low = [torch.where(swap, a, b) for a, b in zip(one, two, strict=True)]
    gap = low[0] - high[0]
    factor = gap.exp()
    mass = high[1] + factor * (1 + low[1])
    moment = high[2] + factor * (low[2] + gap * (1 + low[1]))
    return high[0], mass, moment
