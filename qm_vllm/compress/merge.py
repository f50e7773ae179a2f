"""Groups of tokens become one state each."""

from __future__ import annotations

import torch
from torch import Tensor

from qm_vllm.compress.grouping import check_kept
from qm_vllm.config import ConfigError, QuickMergeConfig

MAX_DROPPED_SHARE = 0.1
"""Largest mass of all dropped tokens of a group, as a share of their anchor's mass."""
MIN_ANCHOR_MASS = 1e-3
"""Smallest mass of an anchor, whatever its saliency."""


def merge_states(
    states: Tensor, kept: Tensor, groups: Tensor, saliency: Tensor, config: QuickMergeConfig
) -> Tensor:
    """One state per group: the mean of its tokens, weighted by :func:`token_masses`.

    Computed as ``x_anchor + sum_j w_j (x_j - x_anchor)``, so that a group of one is its
    anchor bit for bit. Paper 3.3, last equation.

    Args:
        states: [N, D], any floating type; sums run in float32 (float64 for float64 states).
        kept: int64 [K], strictly increasing positions of the anchors.
        groups: int64 [N], the group 0..K-1 of each token, anchor k in group k.
        saliency: [N], higher = keep.
        config: its merge and epsilon.

    Returns:
        [K, D] in the states' dtype, in order of the anchors. Deterministic on every device.

    Raises:
        ValueError: shapes disagree, or an anchor is outside its group.
    """
    masses = token_masses(kept, groups, saliency, config)
    if states.ndim != 2 or states.shape[0] != groups.shape[0]:
        raise ValueError(f"states must be [{groups.shape[0]}, D], not {list(states.shape)}")
    merged = states[kept].clone()
    if config.merge == "select":
        return merged
    dropped = torch.ones_like(groups, dtype=torch.bool)
    dropped[kept] = False
    order = torch.sort(groups.masked_fill(~dropped, kept.shape[0]), stable=True).indices
    order = order[: groups.shape[0] - kept.shape[0]]  # dropped tokens, by group
    if order.shape[0] == 0:
        return merged
    rows, sizes = torch.unique_consecutive(groups[order], return_counts=True)
    work = torch.promote_types(states.dtype, torch.float32)
    totals = _segment_sums(masses, groups, kept.shape[0])
    weights = (masses / totals[groups])[order].to(work)
    anchors = merged.to(work)
    shift = (states[order].to(work) - anchors[groups[order]]) * weights[:, None]
    moved = anchors[rows] + torch.segment_reduce(shift, "sum", lengths=sizes, axis=0)
    merged[rows] = moved.to(states.dtype)
    return merged


def token_masses(
    kept: Tensor, groups: Tensor, saliency: Tensor, config: QuickMergeConfig
) -> Tensor:
    """Mass of each token in its group's mean.

    "select": 1 for anchors, 0 for the rest. "mean": 1 for all. "weighted": the paper's
    ``m = M s + (1 - M) epsilon`` with M = 1 for anchors and 0 for dropped tokens, with two
    deviations: an anchor's mass is at least :data:`MIN_ANCHOR_MASS`, and the dropped tokens of
    one group together weigh at most :data:`MAX_DROPPED_SHARE` of their anchor, so that a long
    run of dropped tokens cannot outweigh it.

    Args:
        kept: int64 [K], strictly increasing.
        groups: int64 [N].
        saliency: [N], higher = keep; negative values count as 0.
        config: its merge and epsilon.

    Returns:
        [N] float64, on the groups' device.

    Raises:
        ValueError: shapes disagree, or an anchor is outside its group.
    """
    count = groups.shape[0]
    check_kept(kept, count)
    if saliency.shape != groups.shape:
        raise ValueError(f"saliency must be [{count}], not {list(saliency.shape)}")
    if not torch.equal(groups[kept], torch.arange(kept.shape[0], device=groups.device)):
        raise ValueError("each anchor must be in its own group: groups[kept] != 0..K-1")
    masses = torch.zeros(count, dtype=torch.float64, device=groups.device)
    if config.merge == "mean":
        return masses + 1
    if config.merge == "select":
        masses[kept] = 1
        return masses
    if config.merge != "weighted":
        raise ConfigError(f"merge={config.merge!r} is unknown; allowed: weighted, select, mean")
    anchor = saliency[kept].double().clamp_min(MIN_ANCHOR_MASS)
    sizes = torch.bincount(groups, minlength=kept.shape[0])
    dropped = (sizes - 1).clamp_min(1).double()
    share = torch.minimum(
        torch.full_like(anchor, config.epsilon), MAX_DROPPED_SHARE * anchor / dropped
    )
    masses = share[groups]
    masses[kept] = anchor
    return masses


def _segment_sums(values: Tensor, groups: Tensor, size: int) -> Tensor:
    """Sum of values per group, in a fixed order: [size] float64."""
    order = torch.sort(groups, stable=True).indices
    sizes = torch.bincount(groups, minlength=size)
    return torch.segment_reduce(values[order], "sum", lengths=sizes, axis=0)
