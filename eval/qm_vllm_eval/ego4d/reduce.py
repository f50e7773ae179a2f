"""K states of a clip's N features: merged by QuickMerge, around random tokens, or all of them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from qm_vllm.compress import Evidence, choose, finish, protected_positions, select
from qm_vllm.prior.batches import kept as kept_of
from qm_vllm.prior.batches import merging
from qm_vllm.prior.side_inputs import with_times

WAYS = ("quickmerge", "random")


@dataclass(frozen=True, eq=False)
class Reduced:
    """States [K, D + time features] in order, and the positions [K] of their anchors."""

    states: Tensor
    kept: Tensor
    num_tokens: int


def reduce(
    features: Tensor, ratio: float, *, way: str = "quickmerge", times: int = 0, name: str = ""
) -> Reduced:
    """Merge features to ``ceil(ratio N)`` states, as ``qm-vllm train-prior`` does.

    Args:
        features: [N, D] float.
        ratio: K / N, in (0, 1].
        way: which tokens stay: those of the highest saliency (attention entropy), or "random"
            ones. The others are merged into them in both cases.
        times: time features behind each state (:attr:`PriorConfig.time_features`).
        name: seeds the random choice; equal names, equal tokens.

    Raises:
        ValueError: no such way.
    """
    if way not in WAYS:
        raise ValueError(f"way={way!r} must be one of {', '.join(WAYS)}")
    count, width = features.shape
    k = kept_of(count, ratio)
    states, kept = features, torch.arange(count)
    if k < count:
        config = merging(width)
        evidence = Evidence.from_states(
            features, [features], logit_scale=config.logit_scale, needs=frozenset({"entropy"})
        )
        protected = protected_positions(config, count)
        if way == "quickmerge":
            choice = choose(evidence, config, protected=protected, k=k)
            scores, kept = choice.scores, choice.kept
        else:
            seed = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            scores = torch.rand(count, generator=seed)
            kept = select(scores, k, protected)
        states = finish(features, evidence, scores, kept, config).states
    return Reduced(with_times(states, kept, count, times), kept, count)
