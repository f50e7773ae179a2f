"""The paper's method on scores computed beforehand: the "QuickMerge++" row of Tables 1 and 2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qm_vllm.compress.merge import MAX_DROPPED_SHARE, MIN_ANCHOR_MASS
from qm_vllm_eval.baselines.base import Method, Noise, Source, Tokens

MIN_KEPT = 4
"""Fewest tokens that the entropy budget leaves, unless a sequence is shorter."""
_PROTECTED, _MASKED = 2, -2
"""Classes of tokens in the order of keeping, above and below the plain 0."""


class QuickMerge(Method):
    """Entropy budget, norm masking, anchors, contiguous groups, mass-weighted means.

    What :func:`qm_vllm.compress.compress` does with ``qm_vllm.prior.batches.merging(width)``,
    batched, from the scores in the :class:`Source`; and the paper's norm masking (4.1: "dynamically
    selects tokens with entropy threshold alpha and norm masking"; abstract: "based on attention
    norm magnitude"), in our reading: a token whose norm is under a quantile of its sequence's is
    no anchor, unless too few others are left.

    In training the anchors are those of the straight-through mask of
    :func:`qm_vllm.compress.gumbel_softmax_mask` (``hard=True``): the K largest of
    ``(s + g) / temperature``. One deviation from the paper's training: the merge is the
    inference one, of 0/1 masks and capped masses, since the scores are frozen and no gradient
    would pass through relaxed masks. So, as in eq. 3, the temperature does not change which
    tokens are kept; with ``annealed`` they are the largest of ``s / temperature + g``, the usual
    Gumbel-softmax of logits s, whose noise vanishes with the temperature.

    Args:
        width: D, which is also W.
        factor: N / K wanted; read without the entropy budget.
        alpha: threshold on Source.absolute (:func:`calibrate_alpha`); None without the budget.
        norm_mask: quantile of the norms in [0, 1); 0 switches masking off.
        epsilon: mass of a dropped token.
        entropy_budget: K by sequence (tokens of at least alpha, 4 or more) or ceil(N / factor).
        aligned: whether the decoder is trained to predict the tokens too (L_AR).
        annealed: whether the training noise shrinks with the temperature.
    """

    def __init__(
        self, width: int, factor: float = 2.37, alpha: float | None = None,
        norm_mask: float = 0.25, epsilon: float = 1e-2, entropy_budget: bool = True,
        aligned: bool = True, annealed: bool = False,
    ) -> None:
        super().__init__()
        if entropy_budget and alpha is None:
            raise ValueError("the entropy budget needs alpha; see calibrate_alpha")
        if not 0 <= norm_mask < 1 or factor < 1:
            raise ValueError("norm_mask must be in [0, 1) and factor at least 1")
        self.name, self.width, self.aligned = "QuickMerge++", width, aligned
        self.factor, self.alpha, self.norm_mask = factor, alpha, norm_mask
        self.epsilon, self.entropy_budget, self.annealed = epsilon, entropy_budget, annealed

    def budgets(self, source: Source) -> Tensor:
        """K of each sequence: int64 [B]."""
        batch, count = source.saliency.shape
        if not self.entropy_budget or self.alpha is None:
            k = min(count, max(1, math.ceil(count / self.factor - 1e-9)))
            return torch.full((batch,), k, device=source.saliency.device)
        return (source.absolute >= self.alpha).sum(1).clamp(min(MIN_KEPT, count), count)

    def anchors(self, source: Source, noise: Noise | None = None) -> Tensor:
        """Whether a token is kept: bool [B, N], as many per row as :meth:`budgets` says."""
        score = source.saliency
        if noise is not None:
            drawn = torch.empty_like(score).exponential_(generator=noise.generator)
            gumbel = -drawn.clamp_min(torch.finfo(score.dtype).tiny).log()
            score = score / noise.temperature + gumbel if self.annealed else score + gumbel
        classes = torch.zeros_like(score)
        if self.norm_mask:
            norms = torch.linalg.vector_norm(source.states, dim=-1)
            least = torch.quantile(norms, self.norm_mask, dim=1, keepdim=True)
            classes = torch.where(norms < least, float(_MASKED), 0.0)
        classes[:, -1] = _PROTECTED
        return best(score, classes, self.budgets(source))

    def forward(self, source: Source, noise: Noise | None = None) -> Tokens:
        """[B, K_max, D] in the order of the anchors."""
        states, lengths = merge(source, self.anchors(source, noise), self.epsilon)
        return Tokens(states, lengths, states.new_zeros(()))


def best(score: Tensor, classes: Tensor, budgets: Tensor) -> Tensor:
    """The first K of each row by class, then score, then position.

    Args:
        score: [B, N], higher = keep.
        classes: [B, N], higher = keep, whatever the score.
        budgets: int64 [B], K of each row.

    Returns:
        bool [B, N].
    """
    order = torch.sort(score, dim=1, descending=True, stable=True).indices
    first = torch.sort(classes.gather(1, order), dim=1, descending=True, stable=True).indices
    order = order.gather(1, first)
    positions = torch.arange(score.shape[1], device=score.device)
    chosen = positions < budgets[:, None]
    return torch.zeros_like(chosen).scatter(1, order, chosen)


def nearest(kept: Tensor) -> Tensor:
    """Group of each token, by position; the left one where two are equally near.

    :mod:`qm_vllm.compress.grouping.contiguous`, batched.

    Args:
        kept: bool [B, N], at least one in each row.

    Returns:
        int64 [B, N], the index among its row's kept tokens.
    """
    count = kept.shape[1]
    positions = torch.arange(count, device=kept.device)
    far = 2 * count
    left = torch.where(kept, positions, -far).cummax(1).values
    right = torch.where(kept, positions, far).flip(1).cummin(1).values.flip(1)
    left_group = kept.long().cumsum(1) - 1
    goes_left = positions - left <= right - positions
    return torch.where(goes_left, left_group, left_group + 1)


def merge(source: Source, kept: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Merged states of each sequence: ``x_anchor + sum_j w_j (x_j - x_anchor)``.

    :func:`qm_vllm.compress.merge_states` with merge "weighted", batched: masses
    ``m = M s + (1 - M) epsilon``, an anchor's at least :data:`MIN_ANCHOR_MASS`, those of a
    group's dropped tokens together at most :data:`MAX_DROPPED_SHARE` of their anchor's.

    Args:
        source: its states [B, N, D] and saliency [B, N].
        kept: bool [B, N], at least one in each row.
        epsilon: mass of a dropped token.

    Returns:
        [B, K_max, D] padded with 0, and int64 [B].
    """
    states, lengths = source.states, kept.sum(1)
    longest = int(lengths.max())
    slots = torch.arange(longest, device=states.device)
    inside = slots < lengths[:, None]
    # Kept positions in order, then (masked below) the others.
    places = torch.sort((~kept).to(torch.uint8), dim=1, stable=True).indices[:, :longest]
    anchors = _rows(states, places)
    groups = nearest(kept)
    member = (groups[:, None] == slots[:, None]) & ~kept[:, None]  # [B, K, N], dropped tokens
    dropped = member.sum(2).double()
    mass = source.saliency.double().gather(1, places).clamp_min(MIN_ANCHOR_MASS)
    share = (MAX_DROPPED_SHARE * mass / dropped.clamp_min(1)).clamp_max(epsilon)
    weights = (share / (mass + share * dropped)).to(states.dtype)
    merged = anchors + weights[..., None] * (
        member.to(states.dtype) @ (states - _rows(anchors, groups))
    )
    return merged * inside[..., None], lengths


def calibrate_alpha(absolute: Tensor, factor: float) -> float:
    """The alpha with which the entropy budget keeps 1/factor of all tokens.

    Args:
        absolute: [S, N], Source.absolute of the training sequences.
        factor: N / K wanted over all of them, >= 1; at least :data:`MIN_KEPT` stay of each.

    Returns:
        One of the values; the share kept is as near to 1/factor as ties allow.
    """
    count = absolute.shape[1]
    values = absolute.flatten().unique()

    def share(index: int) -> float:
        kept = (absolute >= values[index]).sum(1).clamp(min(MIN_KEPT, count), count)
        return float(kept.double().mean()) / count

    low, high = 0, values.shape[0] - 1  # share falls with the index
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if share(middle) > 1 / factor else (low, middle)
    near = min((low, high), key=lambda index: abs(share(index) - 1 / factor))
    return float(values[near])


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows [B, M, D] of values [B, N, D] at index [B, M]."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
