"""How far the attention of a prompt's end moves when tokens are dropped: ``max_error``.

Measured on the served model while it reads the prompt: what its last queries read from all
tokens, against what they read from the kept ones. It needs no reference answer, and it is no
measure of quality: how well it predicts what a task loses stands in docs/decisions.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

STEPS = 64
"""Most sizes at which the error is looked at."""
STEP = 1.06
"""Each size is at least this many times the one before."""


@dataclass(frozen=True, eq=False)
class AttentionError:
    """Squared errors of attention outputs, per head, when only the first tokens of an order stay.

    Attributes:
        lost: [H, S] float32, ``sum_q ||o_q - o_q(K)||^2`` for S sizes K, with
            ``o_q = sum_i p_qi v_i`` over all tokens and ``o_q(K)`` the same over the kept ones,
            p made to sum to 1 again.
        energy: [H] float32, ``sum_q ||o_q||^2``.
    """

    lost: Tensor
    energy: Tensor

    @classmethod
    def of(
        cls, weights: Tensor, values: Tensor, order: Tensor, sizes: Sequence[int]
    ) -> AttentionError:
        """Measure one layer.

        Args:
            weights: [H, W, N] causal softmax weights of the last W queries, in prompt order.
            values: [KVH, N, d], KVH a divisor of H.
            order: int64 [N], all positions, those to keep first.
            sizes: increasing numbers of kept tokens, each in [1, N].

        Raises:
            ValueError: shapes disagree, or sizes are not increasing within [1, N].
        """
        heads, _, count = weights.shape
        if values.shape[1] != count or heads % values.shape[0] or order.shape != (count,):
            raise ValueError(
                f"weights {list(weights.shape)}, values {list(values.shape)} and order "
                f"{list(order.shape)} do not belong together"
            )
        bounds = [0, *sizes]
        if not sizes or bounds[-1] > count or any(b <= a for a, b in pairwise(bounds)):
            raise ValueError(f"sizes must increase within 1 and {count}, not {list(sizes)}")
        order = order.to(weights.device)
        shared = values.float()
        rows = weights.float().reshape(len(shared), -1, count)  # [KVH, H / KVH x W, N]
        full = rows @ shared
        read, mass = torch.zeros_like(full), torch.zeros_like(full[..., :1])
        lost = []
        for start, stop in pairwise(bounds):
            chosen = order[start:stop]
            part = rows[..., chosen]
            read += part @ shared[:, chosen]
            mass += part.sum(-1, keepdim=True)
            apart = full - read / mass.clamp_min(1e-20)
            lost.append(apart.square().reshape(heads, -1).sum(1))
        return cls(torch.stack(lost, 1), full.square().reshape(heads, -1).sum(1))

    @classmethod
    def joined(cls, parts: Sequence[AttentionError]) -> AttentionError:
        """The same over the heads of all parts (layers, or ranks of a tensor-parallel group)."""
        return cls(
            torch.cat([part.lost for part in parts]), torch.cat([part.energy for part in parts])
        )

    def relative(self) -> Tensor:
        """Highest ``sqrt(lost / energy)`` of any head: [S] float32, 0 where nothing is lost."""
        return (self.lost / self.energy.clamp_min(1e-20)[:, None]).sqrt().amax(0)


def sizes_between(low: int, num_tokens: int, block_size: int | None = None) -> list[int]:
    """Numbers of kept tokens worth looking at, increasing, the last one N.

    Args:
        low: smallest number, >= 1.
        num_tokens: N >= low.
        block_size: K - 1 shall fill whole blocks of this many tokens; None: any K.

    Returns:
        At most :data:`STEPS` + 1 numbers.
    """
    step, sizes, wanted = block_size or 1, [], float(low)
    growth = max(STEP, (num_tokens / low) ** (1 / STEPS))
    while wanted < num_tokens:
        size = -(-max(1, round(wanted) - 1) // step) * step + 1 if block_size else round(wanted)
        if size >= num_tokens:
            break
        sizes.append(size)
        wanted = max(size * growth, size + step)
    return [*sizes, num_tokens]


def smallest_within(errors: Tensor, sizes: Sequence[int], limit: float) -> int:
    """The smallest size from which on every error is within the limit; else the last size.

    Args:
        errors: [S], as :meth:`AttentionError.relative` gives them for the sizes.
        limit: largest error allowed, >= 0.
    """
    chosen = sizes[-1]
    for size, error in zip(reversed(sizes), reversed(errors.tolist()), strict=True):
        if error > limit:
            break
        chosen = size
    return chosen
