"""Each dropped token joins the nearest kept one."""

from __future__ import annotations

import torch
from torch import Tensor


def group(states: Tensor, kept: Tensor) -> Tensor:
    """Group of the nearest anchor by position; the left one where two are equally near.

    Args:
        states: [N, D]; only N and the device are read.
        kept: int64 [K], strictly increasing.

    Returns:
        int64 [N], non-decreasing.
    """
    positions = torch.arange(states.shape[0], device=kept.device)
    right = torch.searchsorted(kept, positions)
    left = (right - 1).clamp_min(0)
    right = right.clamp_max(kept.shape[0] - 1)
    to_left = (positions - kept[left]).abs()
    to_right = (kept[right] - positions).abs()
    return torch.where(to_left <= to_right, left, right)
