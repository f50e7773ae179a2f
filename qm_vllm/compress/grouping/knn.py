"""Each dropped token joins the most similar kept one nearby."""

from __future__ import annotations

import torch
from torch import Tensor

from qm_vllm.compress.entropy import unit_rows
from qm_vllm.compress.grouping import contiguous

WINDOW = 64
"""Positions either side in which anchors are looked for."""
ROWS = 256
"""Tokens that are compared with the anchors around them at once."""


def group(states: Tensor, kept: Tensor, window: int = WINDOW) -> Tensor:
    """Group of the anchor of largest cosine within a window of positions.

    Anchors stay in their own group. Of equal cosines the lower anchor wins; a token with no
    anchor in its window joins the nearest one. Memory is O(N D), work O(N window D).

    Args:
        states: [N, D], any floating type.
        kept: int64 [K], strictly increasing.
        window: positions either side, >= 0.

    Returns:
        int64 [N].
    """
    count = states.shape[0]
    groups = contiguous.group(states, kept)
    unit, _ = unit_rows(states)
    starts = torch.arange(0, count, ROWS, device=kept.device)
    low = torch.searchsorted(kept, starts - window).tolist()
    high = torch.searchsorted(kept, starts + (ROWS - 1 + window), right=True).tolist()
    positions = torch.arange(count, device=kept.device)
    for start, first, last in zip(range(0, count, ROWS), low, high, strict=True):
        if first == last:
            continue
        anchors = kept[first:last]
        cosine = unit[start : start + ROWS] @ unit[anchors].T
        far = (positions[start : start + ROWS, None] - anchors).abs() > window
        best, where = cosine.masked_fill_(far, -torch.inf).max(dim=1)
        nearest = groups[start : start + ROWS]
        groups[start : start + ROWS] = torch.where(best > -torch.inf, where + first, nearest)
    groups[kept] = torch.arange(kept.shape[0], device=kept.device)
    return groups
