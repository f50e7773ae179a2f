"""Which tokens of a prompt stay, from what was seen of it: everybody who chooses does it here.

The steps: score every token, count the protected ones, measure what a budget needs, set K, round
it to blocks of the KV cache, and take the first K of the order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from qm_vllm.compress.attention_error import sizes_between, smallest_within
from qm_vllm.compress.budget import choose_budget, in_blocks, keep_order
from qm_vllm.compress.evidence import Evidence, absolute_saliency
from qm_vllm.compress.saliency import score_tokens
from qm_vllm.config import QuickMergeConfig

Errors = Callable[[Tensor, list[int]], Tensor]
"""``errors(order, sizes)``: relative attention errors [S] if the first ``sizes[s]`` tokens of
``order`` stay (:class:`~qm_vllm.compress.attention_error.AttentionError`)."""
Upload = Callable[[Tensor, torch.device], Tensor]
"""``upload(tensor, device)``: a CPU tensor's copy on the device."""


@dataclass(frozen=True, eq=False)
class Choice:
    """What stays of a prompt of N tokens.

    Attributes:
        scores: [N] float32 in [0, 1], higher = keep.
        order: int64 [N], all positions, those to keep first.
        kept: int64 [K], the first K of the order, strictly increasing.
        protected: how many positions had to stay.
        error: the relative attention error (a scalar) with these K, where it was measured.
    """

    scores: Tensor
    order: Tensor
    kept: Tensor
    protected: int
    error: Tensor | None = None

    @property
    def k(self) -> int:
        """K, how many positions stay."""
        return self.kept.shape[0]

    @property
    def crowded(self) -> bool:
        """Whether the protected positions take the whole budget: no score chose anything."""
        return self.k <= self.protected < self.order.shape[0]


def keeps_all(config: QuickMergeConfig, num_tokens: int, protected: int) -> bool:
    """Whether every token stays whatever the scores, so that none need be computed.

    Args:
        config: its budget.
        num_tokens: N >= 1.
        protected: how many positions must stay.

    Raises:
        ConfigError: max_kept cannot hold the protected positions.
    """
    measured = config.alpha is not None or config.max_error is not None
    if measured and protected < num_tokens:
        return False
    plain = replace(config, alpha=None, max_error=None)
    return choose_budget(plain, num_tokens, None, protected) == num_tokens


def choose(
    evidence: Evidence,
    config: QuickMergeConfig,
    *,
    protected: Tensor,
    block_size: int | None = None,
    errors: Errors | None = None,
    k: int | None = None,
    kept: Sequence[int] | None = None,
    upload: Upload = Tensor.to,
    check: bool = True,
) -> Choice:
    """Score every token and choose those that stay.

    With ``check=False`` the host waits for the device only where a budget reads a measurement:
    once for alpha and once for max_error.

    Args:
        evidence: of one prompt of N tokens; must hold what
            :func:`~qm_vllm.compress.saliency.needs` names.
        config: its score and, unless ``k`` or ``kept`` is given, its budget.
        protected: bool [N] on the CPU, positions that stay
            (:func:`~qm_vllm.compress.budget.protected_positions`).
        block_size: K - 1 shall fill whole blocks of this many tokens, as
            :func:`~qm_vllm.compress.budget.round_to_blocks` rounds; None: any K.
        errors: measures attention errors. max_error needs it; the error of the choice is measured
            once wherever it is given.
        k: a budget that the caller has fixed, 1 <= k <= N, in place of the configured one. It is
            raised to the protected count and not rounded.
        kept: a choice made before that is made again: strictly increasing positions.
        upload: brings a mask [N] to the scores' device.
        check: look at the values of the scores, which waits for the device they are on.

    Returns:
        The choice, its tensors on the scores' device.

    Raises:
        ConfigError: max_kept cannot hold the protected positions, or not once K is rounded.
        ValueError: evidence is missing, shapes disagree, a score is not finite, ``k`` or ``kept``
            is impossible, or max_error is set and errors is missing.
    """
    count, floor = evidence.num_tokens, int(protected.sum())
    first = protected if kept is None else _mask(kept, count)
    if k is not None and (kept is not None or not 1 <= k <= count):
        raise ValueError(f"k={k} must be between 1 and the {count} tokens, and kept left out")
    scores = score_tokens(evidence, config)
    if check and not bool(torch.isfinite(scores).all()):
        raise ValueError("scores must be finite; check the states for NaN or infinity")
    order = keep_order(scores, upload(first, scores.device))
    sizes: list[int] = []
    found: Tensor | None = None
    if kept is not None:
        k = len(kept)
    elif k is not None:
        k = max(k, floor)
    else:
        within = None
        if config.max_error is not None and errors is not None:
            sizes = sizes_between(max(1, floor), count, block_size)
            found = errors(order, sizes)
            within = smallest_within(found, sizes, config.max_error)
        saliency = None if config.alpha is None else absolute_saliency(evidence)
        k = choose_budget(config, count, saliency, floor, within)
        k = in_blocks(config, k, count, floor, block_size)
    error = None
    if errors is not None:
        error = found[sizes.index(k)] if found is not None and k in sizes else errors(order, [k])[0]
    return Choice(scores, order, order[:k].sort().values, floor, error)


def _mask(kept: Sequence[int], count: int) -> Tensor:
    """Marks these positions: bool [N] on the CPU."""
    bounds = [-1, *kept, count]
    if not kept or any(later <= earlier for earlier, later in pairwise(bounds)):
        raise ValueError(f"kept must be strictly increasing positions in [0, {count})")
    mask = torch.zeros(count, dtype=torch.bool)
    mask[list(kept)] = True
    return mask
