"""How many tokens stay, which must, and which do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from qm_vllm.config import ConfigError, QuickMergeConfig


def choose_budget(
    config: QuickMergeConfig, num_tokens: int, saliency: Tensor | None, protected: int = 0,
    within_error: int | None = None,
) -> int:
    """K, the number of tokens to keep of N.

    Starts from ``ceil(ratio * N)``, the number of tokens with saliency >= alpha and the
    smallest number that meets max_error, whichever are set (the smallest if several are; the
    default ratio if no budget field is set). Raised to min_kept and to the protected count, then
    bounded by max_kept and N.

    Args:
        config: its ratio, alpha, max_kept and min_kept.
        num_tokens: N >= 1.
        saliency: [N], the absolute one (:func:`~qm_vllm.compress.evidence.absolute_saliency`);
            read only if alpha is set.
        protected: how many positions must stay, tokens.
        within_error: the smallest K that meets max_error
            (:func:`~qm_vllm.compress.attention_error.smallest_within`); read only if it is set.

    Returns:
        K in [1, N].

    Raises:
        ConfigError: max_kept cannot hold the protected positions of this prompt.
        ValueError: alpha is set and saliency is missing or not [N]; max_error is set and
            within_error is missing; N < 1.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens={num_tokens} must be at least 1")
    wanted: list[int] = []
    ratio = config.ratio
    if all(getattr(config, name) is None for name in config.BUDGET_FIELDS):
        ratio = config.DEFAULT_RATIO
    if ratio is not None:
        wanted.append(math.ceil(ratio * num_tokens - 1e-9))
    if config.alpha is not None:
        if saliency is None or saliency.shape != (num_tokens,):
            shape = None if saliency is None else list(saliency.shape)
            raise ValueError(
                f"alpha={config.alpha} needs the absolute saliency [{num_tokens}] of the "
                f"prompt, not {shape}"
            )
        wanted.append(int((saliency >= config.alpha).sum()))
    if config.max_error is not None:
        if within_error is None:
            raise ValueError(f"max_error={config.max_error} needs the measured error of the prompt")
        wanted.append(within_error)
    kept = max(min(wanted, default=num_tokens), config.min_kept, protected, 1)
    if config.max_kept is not None and config.max_kept < num_tokens:
        if protected > config.max_kept:
            raise ConfigError(
                f"max_kept={config.max_kept} cannot hold the {protected} protected positions "
                f"of this prompt; raise it or protect fewer"
            )
        kept = min(kept, config.max_kept)
    return min(kept, num_tokens)


def protected_positions(
    config: QuickMergeConfig,
    num_tokens: int,
    *,
    special: Iterable[int] = (),
    ranges: Iterable[tuple[int, int]] = (),
    last: int | None = None,
) -> Tensor:
    """Positions that stay whatever their score.

    The first ``protect_first``, the last ``protect_last``, ``protect_ranges``, the special
    tokens if ``protect_special`` is set, and the ranges given; ranges are clipped to the prompt.

    Args:
        config: its protect_* fields.
        num_tokens: N.
        special: positions of special tokens, each in [0, N).
        ranges: half-open ranges ``(start, stop)`` of positions, such as turns that stay whole.
        last: in place of ``protect_last``.

    Returns:
        bool [N] on the CPU.

    Raises:
        IndexError: a special position lies outside the prompt.
    """
    mask = torch.zeros(num_tokens, dtype=torch.bool)
    mask[: config.protect_first] = True
    mask[max(0, num_tokens - (config.protect_last if last is None else last)) :] = True
    for start, stop in (*config.protect_ranges, *ranges):
        mask[start:stop] = True
    if config.protect_special:
        mask[list(special)] = True
    return mask


def protected_mask(
    config: QuickMergeConfig,
    token_ids: Sequence[int] | Tensor | None,
    num_tokens: int,
    special_ids: frozenset[int],
) -> Tensor:
    """:func:`protected_positions` where special tokens are known by their ids.

    Args:
        config: its protect_* fields.
        token_ids: [N] ids, or None where the tokens have none.
        num_tokens: N.
        special_ids: ids of the tokenizer's special tokens.

    Returns:
        bool [N] on the CPU.

    Raises:
        ValueError: token_ids does not have N entries.
    """
    special: list[int] = []
    if token_ids is not None:
        if len(token_ids) != num_tokens:
            raise ValueError(f"token_ids has {len(token_ids)} entries for {num_tokens} tokens")
        ids = torch.as_tensor(token_ids, dtype=torch.long, device="cpu")
        named = torch.isin(ids, torch.tensor(sorted(special_ids), dtype=torch.long))
        special = named.nonzero()[:, 0].tolist()
    return protected_positions(config, num_tokens, special=special)


def round_to_blocks(k: int, num_tokens: int, floor: int, block_size: int) -> int:
    """K adjusted so that ``K - 1`` tokens fill whole blocks of the KV cache.

    The largest ``m * block_size + 1 <= k`` with m >= 1, if that reaches floor; otherwise the
    smallest such number that does.

    Args:
        k: tokens to keep.
        num_tokens: N.
        floor: tokens that must stay (the protected count).
        block_size: tokens of one KV block, >= 1.

    Returns:
        The adjusted K; num_tokens (keep all) where it would reach num_tokens or k does.
    """
    if block_size < 1:
        raise ValueError(f"block_size={block_size} must be at least 1")
    if k >= num_tokens:
        return num_tokens
    blocks = (k - 1) // block_size
    if blocks < 1 or blocks * block_size + 1 < floor:
        blocks = max(1, -(-(floor - 1) // block_size))
    return min(blocks * block_size + 1, num_tokens)


def in_blocks(
    config: QuickMergeConfig, k: int, num_tokens: int, floor: int, block_size: int | None
) -> int:
    """:func:`round_to_blocks`, which may not go beyond max_kept; None: K as it is.

    Raises:
        ConfigError: the protected positions fill one block more than max_kept holds.
    """
    if block_size is not None:
        k = round_to_blocks(k, num_tokens, floor, block_size)
    if config.max_kept is not None and k > config.max_kept:
        raise ConfigError(
            f"max_kept={config.max_kept} is too small: {floor} positions are protected and "
            f"{k} would be kept; raise it or protect fewer"
        )
    return k


def keep_order(score: Tensor, protected: Tensor) -> Tensor:
    """All positions in the order in which they are kept: the protected ones, then by score.

    Args:
        score: [N], finite, higher = keep.
        protected: bool [N].

    Returns:
        int64 [N] on score's device. Of equal scores, and of the protected, the lower position
        comes first.

    Raises:
        ValueError: shapes disagree.
    """
    if score.ndim != 1 or protected.shape != score.shape:
        raise ValueError(
            f"score and protected must both be [N], not {list(score.shape)} and "
            f"{list(protected.shape)}"
        )
    first = score.masked_fill(protected.to(score.device), torch.inf)
    return torch.sort(first, descending=True, stable=True).indices


def select(score: Tensor, k: int, protected: Tensor) -> Tensor:
    """Positions to keep: the first of :func:`keep_order`.

    Args:
        score: [N], finite, higher = keep.
        k: how many to keep, 1 <= k <= N.
        protected: bool [N].

    Returns:
        int64 [max(k, protected count)], strictly increasing, on score's device.

    Raises:
        ValueError: shapes disagree, k is out of range, or a score is not finite.
    """
    if not 1 <= k <= score.shape[0]:
        raise ValueError(f"k={k} must be between 1 and the {score.shape[0]} tokens")
    if not bool(torch.isfinite(score).all()):
        raise ValueError("scores must be finite; check the states for NaN or infinity")
    order = keep_order(score, protected)
    return order[: max(k, int(protected.sum()))].sort().values
