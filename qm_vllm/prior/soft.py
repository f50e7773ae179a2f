"""Stages 1 and 2 of the paper with gradients: saliency, Gumbel masses, merge (3.2, 3.3).

For training only. Inference never samples: :func:`qm_vllm.compress.compress`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qm_vllm.compress.grouping import group_tokens
from qm_vllm.compress.gumbel import gumbel_softmax_mask, soft_merge
from qm_vllm.config import QuickMergeConfig

_TINY_MASS = 1e-6
"""The least salient token has s = 0; alone in its group it must still be itself."""


@dataclass(frozen=True, eq=False)
class SoftCompressed:
    """Merged states that carry gradients.

    Attributes:
        states: [K, D], in order.
        kept: int64 [K], the anchors' positions.
        scores: [N] saliency in [0, 1].
        mask: [N], the relaxed selection M.
    """

    states: Tensor
    kept: Tensor
    scores: Tensor
    mask: Tensor


def soft_compress(
    states: Tensor,
    layers: Sequence[Tensor],
    k: int,
    config: QuickMergeConfig,
    *,
    temperature: float,
    layer_weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> SoftCompressed:
    """Compress N states to K under Gumbel noise, differentiable in states, layers and weights.

    Anchors are the k largest of the noisy saliencies; which tokens they are, and which group a
    token joins, carries no gradient.

    Args:
        states: [N, D], what is merged.
        layers: per score layer, [N, D_l], what the entropies are taken from.
        k: 1 <= k <= N.
        config: its logit_scale, grouping and epsilon.
        temperature: of the relaxation, > 0.
        layer_weights: [L], how much each layer counts, summing to 1; None is the paper's mean.
        generator: source of the noise.

    Raises:
        ValueError: shapes disagree or k is out of range.
    """
    per_layer = torch.stack([layer_scores(layer, config.logit_scale) for layer in layers])
    return merge_scored(
        states, per_layer, k, config, temperature=temperature, layer_weights=layer_weights,
        generator=generator,
    )


def merge_scored(
    states: Tensor,
    per_layer: Tensor,
    k: int,
    config: QuickMergeConfig,
    *,
    temperature: float,
    layer_weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> SoftCompressed:
    """:func:`soft_compress` from the scores [L, N] of :func:`layer_scores`."""
    if layer_weights is None:
        scores = per_layer.mean(0)
    else:
        scores = (layer_weights[:, None] * per_layer).sum(0)
    mask = gumbel_softmax_mask(scores, k, temperature, generator)
    order = torch.sort(mask.detach(), descending=True, stable=True).indices
    kept = order[:k].sort().values
    groups = group_tokens(states.detach(), kept, config)
    masses = scores.clamp_min(max(config.epsilon, _TINY_MASS))
    merged = soft_merge(states, mask, masses, groups, k, config.epsilon)
    return SoftCompressed(merged, kept, scores, mask)


def layer_scores(states: Tensor, logit_scale: float) -> Tensor:
    """``1 - Normalize(H)`` of one layer: the inference-time score, with gradients.

    Holds the N x N attention of eq. 1; for windows of some hundred tokens.

    Args:
        states: [N, D], floating.
        logit_scale: scale of the cosine logits of eq. 1, > 0.

    Returns:
        [N] in [0, 1], in the states' dtype; 0.5 everywhere where all entropies are equal.
    """
    tiny = torch.finfo(states.dtype).tiny
    unit = states / states.norm(dim=1, keepdim=True).clamp_min(tiny)
    logs = (logit_scale * unit @ unit.T).log_softmax(1)
    entropy = -(logs.exp() * logs).sum(1)
    low, high = entropy.aminmax()
    if not bool(high - low > 1e-6 * high.abs()):
        return torch.full_like(entropy, 0.5)
    return 1 - (entropy - low) / (high - low)


def temperature_at(progress: float, first: float = 1.0, last: float = 0.1) -> float:
    """Gumbel temperature, falling geometrically from first to last.

    Args:
        progress: share of the training that is over, in [0, 1].
    """
    return first * (last / first) ** min(max(progress, 0.0), 1.0)
