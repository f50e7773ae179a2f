"""A job's own blocks of the KV cache: its workspace, and then its result."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qm_vllm.engine.upload import upload
from qm_vllm_patches.decoder import LayerView
from qm_vllm_patches.kv_cache import PagedCache, slots_of


class JobCache:
    """Keys and values of one prompt, layer by layer.

    While the layers below E run, each leaves the keys before rotation and the values of all N
    positions (and those of a hint behind them) here. Later each layer's K - 1 kept rows are written
    over them, into the first of the blocks, which is where a request finds them. What a quantised
    cache stores is not what was computed: there the rows wait in tensors of their own.

    Args:
        blocks: at least enough for the rows; in order. rows: N, and those of a hint.
        layers: of the whole model.
        aside: keep the rows in tensors until their layer is delivered.
    """

    def __init__(
        self, cache: PagedCache, blocks: Sequence[int], layers: Sequence[LayerView], rows: int,
        device: torch.device, *, aside: bool = False,
    ) -> None:
        self.cache, self.layers, self.rows = cache, layers, rows
        self.blocks = upload(torch.tensor(blocks, dtype=torch.long), device)
        self.slots = slots_of(self.blocks, cache.block_size, 0, rows)
        self.aside: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] | None = (
            {} if aside else None
        )

    def put(self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep rows [C, KVH, D] of positions from ``start`` on; chunks come in order."""
        if self.aside is not None:
            self.aside.setdefault(layer, []).append((keys.clone(), values.clone()))
            return
        slots = self.slots[start : start + keys.shape[0]]
        self.cache.write(self.layers[layer].module, keys, values, slots)

    def whole(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys before rotation and values of all rows: [rows, KVH, D] each."""
        if self.aside is not None:
            keys, values = zip(*self.aside[layer], strict=True)
            return torch.cat(keys), torch.cat(values)
        return self.cache.read(self.layers[layer].module, self.blocks, self.rows)

    def delivered(self, layer: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first rows [count, KVH, D] that were delivered ``in_parts``: turned keys, values."""
        if self.aside is not None:
            keys, values = self.whole(layer)
            return keys[:count], values[:count]
        blocks = self.blocks[: -(-count // self.cache.block_size)]
        return self.cache.read(self.layers[layer].module, blocks, count)

    def emptied(self) -> JobCache:
        """The same, without rows."""
        self.aside = None if self.aside is None else {}
        return self

    def deliver(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, *, start: int = 0,
        in_parts: bool = False,
    ) -> None:
        """Write a layer's kept rows [R, KVH, D], keys rotated, from row ``start`` on.

        Where the rows of the prompt are here, those of this layer are gone then.

        Args:
            in_parts: the prompt's rows are elsewhere, more of the layer's kept ones follow, and
                these are read again (:meth:`delivered`).
        """
        if self.aside is not None and in_parts:
            self.put(layer, start, keys, values)
        elif self.aside is not None:
            self.aside.pop(layer, None)
        slots = self.slots[start : start + keys.shape[0]]
        self.cache.write(self.layers[layer].module, keys.contiguous(), values.contiguous(), slots)
