"""Units of work that all tensor-parallel ranks end in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from qm_vllm.compress import QueryAttention
from qm_vllm_patches import ranks

Result = TypeVar("Result")


class OtherRankFailed(RuntimeError):
    """Another rank raised, so this one stops too; its log has the reason."""

    def __init__(self) -> None:
        super().__init__("another tensor-parallel rank failed; its log has the reason")


class _Agreed(Exception):
    """Carries an exception that all ranks know of."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def together(unit: Callable[[], Result]) -> Result:
    """Do a unit of work; if it fails on any rank, it fails on all.

    Raises:
        OtherRankFailed: it failed elsewhere.
        Exception: what the unit raised here.
    """
    error: Exception | None = None
    try:
        result = unit()
    except _Agreed as known:
        raise known.error from None
    except Exception as problem:
        error = problem
    if ranks.any_rank(error is not None):
        raise error or OtherRankFailed()
    return result


def gather(make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Rows of all ranks, one rank's after another's, inside a unit of :func:`together`.

    All ranks agree before the exchange that each of them has rows: one that raised would leave the
    others waiting for ever.
    """
    error: Exception | None = None
    rows = torch.empty(0)
    try:
        rows = make()
    except Exception as problem:
        error = problem
    if ranks.any_rank(error is not None):
        raise _Agreed(error or OtherRankFailed())
    return ranks.gather_rows(rows)


def over_ranks(parts: Sequence[QueryAttention]) -> QueryAttention:
    """The layers' attention joined, over the heads of all ranks, equal on each of them."""
    own = QueryAttention.joined(parts)
    rows = gather(lambda: torch.stack((own.recent, own.question, own.energy)))
    if rows.shape[0] == 3:
        return own
    return QueryAttention.joined([QueryAttention(*ranks) for ranks in rows.split(3)])
