"""Tensor-parallel ranks of the worker's group."""

from __future__ import annotations

import torch


def world_size() -> int:
    """Ranks of the tensor-parallel group; 1 where there is none."""
    from vllm.distributed import (
        get_tensor_model_parallel_world_size,
        model_parallel_is_initialized,
    )

    return get_tensor_model_parallel_world_size() if model_parallel_is_initialized() else 1


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, one rank's after another's: [ranks * R, ...]."""
    if world_size() == 1:
        return rows
    from vllm.distributed import tensor_model_parallel_all_gather

    gathered: torch.Tensor = tensor_model_parallel_all_gather(rows, dim=0)
    return gathered


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank. All ranks must call it at the same place.

    Goes through the group's CPU side, so that no device is waited for.
    """
    if world_size() == 1:
        return flag
    from vllm.distributed import get_tp_group

    told = torch.tensor([int(flag)], dtype=torch.int32)
    torch.distributed.all_reduce(told, group=get_tp_group().cpu_group)
    return bool(told.item())
