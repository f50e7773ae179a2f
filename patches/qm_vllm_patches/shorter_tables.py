"""Attention that reads a request's block table from its first block that is there.

Where layers keep fewer tokens than others of the same request, its table in their KV-cache group
begins with vLLM's placeholder block. The attention backend gets the table without these, and a
length that is shorter by them: keys carry their own positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

import torch

PLACEHOLDER = 0
"""vLLM's id of the block that stands where there is none."""


BACKENDS = frozenset({"CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN"})
"""vLLM's names of attention backends that take lengths and tables from where they are told."""


def unknown_backend(model: Any) -> str | None:
    """Why a model's attention may not read shorter tables; None if it does."""
    from vllm.model_executor.layers.attention import Attention

    names = {
        one.get_attn_backend().get_name()
        for one in model.modules() if isinstance(one, Attention)
    }
    unknown = sorted(names - BACKENDS)
    return f"the attention backend is {', '.join(unknown)}" if unknown else None


def leading(table: torch.Tensor, each: int) -> torch.Tensor:
    """How many entries of each row stand for no block, before the first that does: int64 [R].

    Args:
        table: int32 [R, B], ids. each: a block is so many entries, where a kernel has smaller ones;
            the placeholder's are then 0, 1, ... and only the first of them is looked at.
    """
    absent = table[:, ::each] == PLACEHOLDER
    return absent.long().cumprod(1).sum(1) * each


class ShorterTables:
    """Room for one group's tables and lengths, whose place CUDA graphs remember.

    Args:
        block_size: tokens of an entry of the table. each: entries of a block.
        rows: the most requests of a step; the place is never taken anew.
    """

    def __init__(self, block_size: int, each: int, rows: int) -> None:
        self.block_size, self.each, self.rows = block_size, each, rows
        self.table = torch.empty(0, 0, dtype=torch.int32)
        self.lengths = torch.empty(0, dtype=torch.int32)

    def shorten(
        self, table: torch.Tensor, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tables and lengths without what is not there.

        A row without any block (padding, or a step that is made up) stays as it is.

        Args:
            table: int32 [R, B]. lengths: int32 [R], tokens of each request; None: not asked for.
        """
        if table.device.type == "cpu" and not bool((table[:, :1] == PLACEHOLDER).any()):
            return table, lengths
        rows, width = table.shape
        if self.table.shape[0] < rows or self.table.shape[1] != width:
            most = max(rows, self.rows)
            self.table, self.lengths = table.new_zeros(most, width), table.new_zeros(most)
        skip = leading(table, self.each)
        skip = torch.where(skip < width // self.each * self.each, skip, 0)
        index = torch.arange(width, device=table.device) + skip[:, None]
        own = self.table[:rows]
        torch.gather(table, 1, index.clamp_(max=width - 1), out=own)
        if lengths is None:
            return own, None
        out = self.lengths[:rows]
        out.copy_(lengths - skip * self.block_size)
        return own, out


def shorten(groups: Iterable[Any], block_size: int, rows: int) -> None:
    """Let the attention of these groups read shorter tables, from now on.

    Args:
        groups: vLLM's attention groups, of KV-cache groups whose layers keep less.
        block_size: tokens of a block of the cache. rows: the most requests of a step.
    """
    for group in groups:
        for builder in group.metadata_builders:
            own = int(builder.kv_cache_spec.block_size)
            _shorten(builder, ShorterTables(own, block_size // own, rows))


def _shorten(builder: Any, tables: ShorterTables) -> None:
    build, update = builder.build, builder.update_block_table

    def shorter(common_prefix_len: int, common_attn_metadata: Any, *args: Any, **more: Any) -> Any:
        common = common_attn_metadata
        table, lengths = tables.shorten(common.block_table_tensor, common.seq_lens)
        changes: dict[str, Any] = {"block_table_tensor": table, "seq_lens": lengths}
        if lengths is not None and lengths.device.type == "cpu":
            changes["max_seq_len"] = int(lengths.max())
            changes["seq_lens_cpu_upper_bound"] = lengths
        known = {one.name for one in fields(common)}
        changes |= {name: None for name in ("_num_computed_tokens_cache",) if name in known}
        # Rows that share a prefix do not share where it begins.
        return build(0, replace(common, **changes), *args, **more)

    def updated(metadata: Any, blk_table: torch.Tensor, *args: Any, **more: Any) -> Any:
        return update(metadata, tables.shorten(blk_table, None)[0], *args, **more)

    builder.build, builder.update_block_table = shorter, updated
