"""Differentiable selection and merging for training (paper eq. 3-4).

Inference never samples: see :mod:`qm_vllm.compress.budget` and
:mod:`qm_vllm.compress.merge`.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BISECTIONS = 80


def gumbel_softmax_mask(
    saliency: Tensor,
    k: int,
    temperature: float,
    generator: torch.Generator | None = None,
    *,
    hard: bool = False,
) -> Tensor:
    """Relaxed mask of the k most salient tokens under Gumbel noise.

    Eq. 3: ``pi_i`` is the softmax of ``(s_i + g_i) / temperature``. Eq. 4 does not say how k
    tokens are drawn; here ``M_i = pi_i / (pi_i + c)`` with c such that the mask sums to k,
    which for temperature -> 0 is the exact top k of ``s + g``. The gradient includes the
    dependence of c on every saliency.

    Args:
        saliency: [N], floating.
        k: tokens to keep, 1 <= k <= N.
        temperature: > 0.
        generator: source of the noise, on saliency's device; equal seeds, equal masks.
        hard: straight-through: the value is the 0/1 mask of the exact top k (of equal ones
            the lower index), the gradient that of the relaxed mask.

    Returns:
        [N] in [0, 1], in saliency's dtype, summing to k. All ones (and no gradient) for k = N.

    Raises:
        ValueError: saliency is not [N], or k or temperature is out of range.
    """
    if saliency.ndim != 1:
        raise ValueError(f"saliency must be [N], not {list(saliency.shape)}")
    count = saliency.shape[0]
    if not 1 <= k <= count:
        raise ValueError(f"k={k} must be between 1 and the {count} tokens")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be greater than 0")
    exponential = torch.empty_like(saliency, requires_grad=False)
    exponential.exponential_(generator=generator)
    noise = -exponential.clamp_min(torch.finfo(saliency.dtype).tiny).log()
    logits = (saliency + noise) / temperature
    if k == count:
        return torch.ones_like(saliency) + 0 * saliency
    level = _level(logits.detach(), k)
    mask = torch.sigmoid(logits - level)
    # One Newton step on sum(mask) = k: no change in value at the solution, but it carries
    # the derivative of the level with respect to every logit (implicit function theorem).
    slope = (mask * (1 - mask)).sum().detach()
    step = (mask.sum() - k) / slope.clamp_min(torch.finfo(mask.dtype).tiny)
    mask = torch.sigmoid(logits - (level + step))
    if not hard:
        return mask
    best = torch.sort(logits.detach(), descending=True, stable=True).indices[:k]
    exact = torch.zeros_like(mask).scatter_(0, best, 1.0)
    return mask + (exact - mask).detach()


def soft_merge(
    states: Tensor, mask: Tensor, saliency: Tensor, groups: Tensor, k: int, epsilon: float
) -> Tensor:
    """Mass-weighted mean of each group, ``m = M s + (1 - M) epsilon`` (paper 3.3).

    Differentiable in states, mask and saliency. The paper's masses without the inference-time
    cap of :mod:`qm_vllm.compress.merge`.

    Args:
        states: [N, D], floating.
        mask: [N], M in [0, 1].
        saliency: [N], s >= 0.
        groups: int64 [N], values 0..k-1, each at least once.
        k: number of groups.
        epsilon: mass of a token with M = 0, in [0, 1].

    Returns:
        [k, D] in the states' dtype. A group without mass becomes zeros.

    Raises:
        ValueError: shapes disagree, a group is empty, or epsilon is out of range.
    """
    count = states.shape[0]
    if mask.shape != (count,) or saliency.shape != (count,) or groups.shape != (count,):
        raise ValueError(
            f"mask, saliency and groups must be [{count}], not {list(mask.shape)}, "
            f"{list(saliency.shape)} and {list(groups.shape)}"
        )
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon={epsilon} must be at least 0 and at most 1")
    sizes = torch.bincount(groups, minlength=k)
    if sizes.shape[0] != k or not bool((sizes > 0).all()):
        raise ValueError(f"groups must use each of 0..{k - 1} and nothing else")
    masses = (mask * saliency + (1 - mask) * epsilon).to(states.dtype)
    total = masses.new_zeros(k).index_add(0, groups, masses)
    summed = states.new_zeros(k, states.shape[1]).index_add(0, groups, masses[:, None] * states)
    return summed / total.clamp_min(torch.finfo(states.dtype).tiny)[:, None]


def _level(logits: Tensor, k: int) -> Tensor:
    """The t with ``sum sigmoid(logits - t) = k``, by bisection in float64."""
    values = logits.double()
    margin = 40.0 + torch.log(torch.tensor(float(values.shape[0])))
    low, high = values.min() - margin, values.max() + margin
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = torch.sigmoid(values - middle).sum() > k
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return ((low + high) / 2).to(logits.dtype)
