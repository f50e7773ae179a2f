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
AT_ONCE = 8 << 20
"""Bytes of a column of all tokens held at once: merging runs over columns where all would be
more. The workspace is at most three times this, beside the result."""


def merge_states(
    states: Tensor, kept: Tensor, groups: Tensor, saliency: Tensor, config: QuickMergeConfig,
    *, check: bool = True,
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
        check: look at the values of kept and groups, which waits for the device they are on.

    Returns:
        [K, D] in the states' dtype, in order of the anchors. Deterministic on every device.

    Raises:
        ValueError: shapes disagree, or an anchor is outside its group.
    """
    anchor, dropped, sizes = _group_masses(kept, groups, saliency, config, check)
    if states.ndim != 2 or states.shape[0] != groups.shape[0]:
        raise ValueError(f"states must be [{groups.shape[0]}, D], not {list(states.shape)}")
    anchors, rest = states[kept], groups.shape[0] - kept.shape[0]
    if config.merge == "select" or rest == 0:
        return anchors
    outside = torch.ones_like(groups, dtype=torch.bool)
    outside[kept] = False
    by_group = torch.sort(groups.masked_fill(~outside, kept.shape[0]), stable=True)
    order, rows = by_group.indices[:rest], by_group.values[:rest]  # dropped tokens, by group
    work = torch.promote_types(states.dtype, torch.float32)
    weights = (dropped / (anchor + sizes * dropped)).to(work)[rows, None]
    width = max(1, AT_ONCE // (groups.shape[0] * work.itemsize))
    for left in range(0, states.shape[1], width):
        part = anchors[:, left : left + width]
        base = part.to(work)
        shift = states[:, left : left + width][order].to(work)
        shift.sub_(base[rows]).mul_(weights)
        # unsafe: lengths are not read back to be checked; they are counts by construction
        moved = torch.segment_reduce(shift, "sum", lengths=sizes, axis=0, unsafe=True)
        del shift
        moved.add_(base)
        part.copy_(torch.where(sizes[:, None] > 0, moved.to(part.dtype), part))
    return anchors


def token_masses(
    kept: Tensor, groups: Tensor, saliency: Tensor, config: QuickMergeConfig, *, check: bool = True
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
        check: as in :func:`merge_states`.

    Returns:
        [N] float64, on the groups' device.

    Raises:
        ValueError: shapes disagree, or an anchor is outside its group.
    """
    anchor, dropped, _ = _group_masses(kept, groups, saliency, config, check)
    masses = dropped[groups]
    masses[kept] = anchor
    return masses


def _group_masses(
    kept: Tensor, groups: Tensor, saliency: Tensor, config: QuickMergeConfig, check: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each group: its anchor's mass and that of each dropped token, float64 [K], and how
    many dropped tokens it has, int64 [K]."""
    count, size = groups.shape[0], kept.shape[0]
    if saliency.shape != groups.shape:
        raise ValueError(f"saliency must be [{count}], not {list(saliency.shape)}")
    if check:
        check_kept(kept, count)
        if not torch.equal(groups[kept], torch.arange(size, device=groups.device)):
            raise ValueError("each anchor must be in its own group: groups[kept] != 0..K-1")
    sizes = groups.new_full((size,), -1).scatter_add_(0, groups, torch.ones_like(groups))
    if config.merge in ("mean", "select"):
        ones = torch.ones(size, dtype=torch.float64, device=groups.device)
        return ones, ones if config.merge == "mean" else 0 * ones, sizes
    if config.merge != "weighted":
        raise ConfigError(f"merge={config.merge!r} is unknown; allowed: weighted, select, mean")
    anchor = saliency[kept].double().clamp_min(MIN_ANCHOR_MASS)
    share = (MAX_DROPPED_SHARE * anchor / sizes.clamp_min(1)).clamp_max(config.epsilon)
    return anchor, share, sizes
