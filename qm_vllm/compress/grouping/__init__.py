"""Which kept token each token joins, one file a method, all behind one interface."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from qm_vllm.compress.grouping import chain, contiguous, knn
from qm_vllm.config import ConfigError, QuickMergeConfig


class Group(Protocol):
    """``group(states, kept)``: int64 [N], the index 0..K-1 of each token's group."""

    def __call__(self, states: Tensor, kept: Tensor) -> Tensor: ...


GROUPINGS: dict[str, Group] = {
    "contiguous": contiguous.group,
    "knn": knn.group,
    "chain": chain.group,
}
"""Grouping function by configured name."""


def group_tokens(
    states: Tensor, kept: Tensor, config: QuickMergeConfig, *, check: bool = True
) -> Tensor:
    """Assign every token to the group of one kept token, its anchor (paper 3.3).

    Args:
        states: [N, D], any floating type.
        kept: int64 [K], strictly increasing positions of the anchors, K >= 1.
        config: its grouping.
        check: look at the values of kept, which waits for the device they are on.

    Returns:
        int64 [N]: group k holds anchor kept[k]; every group is non-empty.

    Raises:
        ValueError: kept is empty, not increasing, or outside the prompt.
    """
    if check:
        check_kept(kept, states.shape[0])
    if config.grouping not in GROUPINGS:
        raise ConfigError(
            f"grouping={config.grouping!r} is unknown; allowed: {', '.join(GROUPINGS)}"
        )
    return GROUPINGS[config.grouping](states, kept)


def check_kept(kept: Tensor, num_tokens: int) -> None:
    """Raise ValueError unless kept is an int64 [K >= 1], strictly increasing, in [0, N)."""
    if kept.ndim != 1 or kept.shape[0] < 1 or kept.dtype != torch.int64:
        raise ValueError(
            f"kept must be an int64 [K] with K >= 1, not {kept.dtype} {list(kept.shape)}"
        )
    inside = (kept[0] >= 0) & (kept[-1] < num_tokens) & (kept[1:] > kept[:-1]).all()
    if not bool(inside):
        raise ValueError(f"kept must be strictly increasing positions in [0, {num_tokens})")
