"""The paged KV cache of a worker: written by the backend's own update, read by what that did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

ROWS = 512
"""Positions that are read in one call: a call holds what it reads twice."""
BASE = 128
"""Whole numbers below this are exact in every floating type that a cache may have."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a block keeps its numbers.

    Attributes:
        places: int64 [2, block_size, KVH, D]: offset of each key and value within a block.
        steps: of keys and of values, the first offset and how far the next row, head and number
            are; None where no such steps give all offsets.
    """

    places: torch.Tensor
    steps: tuple[tuple[int, ...] | None, ...]

    @classmethod
    def of(cls, places: torch.Tensor) -> Layout:
        """With the steps that give these places, where there are such."""
        return cls(places, tuple(_steps(part) for part in places.cpu()))


def _steps(places: torch.Tensor) -> tuple[int, ...] | None:
    """First offset and steps of an affine layout of [block_size, KVH, D]."""
    first, made, steps = int(places.flatten()[0]), places.new_zeros(()), []
    for dimension, size in enumerate(places.shape):
        along = places.movedim(dimension, 0).reshape(size, -1)[:, 0]
        steps.append(int(along[1]) - first if size > 1 else 0)
        made = made[..., None] + torch.arange(size) * steps[-1]
    return (first, *steps) if torch.equal(made + first, places) else None


class PagedCache:
    """The layers' caches, by vLLM's name of the layer.

    A backend may pack keys in any order within a block, so the order is learned once from what its
    update does with known numbers (:meth:`learn`), in vLLM's placeholder block.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], block_size: int) -> None:
        self.tensors, self.block_size = tensors, block_size
        self.layouts: dict[tuple[Any, ...], Layout] = {}

    def write(
        self, attn: Any, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor
    ) -> None:
        """Write rows [R, KVH, D] of a vLLM attention layer into slots, int64 [R]."""
        cache = self.tensors[attn.layer_name]
        attn.impl.do_kv_cache_update(attn, keys, values, cache, slots)

    def read(
        self, attn: Any, blocks: torch.Tensor, rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The first rows of a sequence of blocks: keys and values [rows, KVH, D].

        Args:
            blocks: int64 [B], ids in order, on the cache's device.
        """
        keys, values = self._whole(attn, blocks, rows, slice(0, 2))
        return keys, values

    def keys(self, attn: Any, blocks: torch.Tensor, rows: int) -> torch.Tensor:
        """The keys of :meth:`read` alone."""
        return self._whole(attn, blocks, rows, slice(0, 1))[0]

    def rows(
        self, attn: Any, blocks: torch.Tensor, positions: torch.Tensor,
        known: dict[tuple[Any, ...], torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Some rows of a sequence of blocks: keys and values [R, KVH, D].

        Args:
            blocks: as of :meth:`read`. positions: int64 [R], within the sequence.
            known: where earlier calls with the same blocks and positions found their numbers; one
                for each layout is added. Finding them takes as long as reading them.
        """
        cache = self._flat(attn)
        if not cache.is_contiguous():
            keys, values = self.read(attn, blocks, blocks.shape[0] * self.block_size)
            return keys[positions], values[positions]
        kind = self._kind(attn)
        if kind not in known:
            places = self.layouts[kind].places
            first = (blocks[positions // self.block_size] * cache[0].numel())[:, None, None]
            known[kind] = first + places[:, positions % self.block_size]
        keys, values = cache.view(-1).index_select(0, known[kind].flatten()).view(
            known[kind].shape
        )
        return keys, values

    def _whole(
        self, attn: Any, blocks: torch.Tensor, rows: int, parts: slice
    ) -> torch.Tensor:
        """[1 or 2, rows, KVH, D]."""
        cache, layout = self._flat(attn), self.layouts[self._kind(attn)]
        wanted, steps = layout.places[parts], layout.steps[parts]
        places, (count, size, heads, width) = wanted.flatten(), wanted.shape
        out = torch.empty(
            count, blocks.shape[0] * size, heads, width, dtype=cache.dtype, device=cache.device
        )
        views = [  # of the cache as it lies: six times as fast
            cache.as_strided(
                (cache.shape[0], size, heads, width), (cache.stride(0), *own[1:]),
                cache.storage_offset() + own[0],
            )
            for own in steps if own is not None and cache[0].is_contiguous()
        ]
        start = 0
        for some in blocks.split(max(1, ROWS // size)):
            stop = start + some.shape[0] * size
            if len(views) == count:
                for whole, view in zip(out, views, strict=True):
                    whole[start:stop] = view[some].flatten(0, 1)
            else:
                own = cache[some].flatten(1)[:, places].view(-1, count, size, heads, width)
                out[:, start:stop] = own.transpose(0, 1).reshape(count, -1, heads, width)
            start = stop
        return out[:, :rows]

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy whole blocks in all layers; block 0 stands for those that nobody needs."""
        needed = [i for i, target in enumerate(targets) if target]
        sources, targets = [sources[i] for i in needed], [targets[i] for i in needed]
        for tensor in self.tensors.values():
            source = torch.tensor(sources, device=tensor.device)
            tensor[torch.tensor(targets, device=tensor.device)] = tensor[source]

    def learn(self, layers: Sequence[Any]) -> str | None:
        """Find out the layouts of these attention layers.

        Returns:
            None, or a sentence that says why a cache cannot be read back.
        """
        for attn in layers:
            kind = self._kind(attn)
            if kind in self.layouts:
                continue
            layout = self._probe(attn)
            if layout is None:
                return (
                    f"the KV cache of {type(attn.impl).__name__} (shape "
                    f"{list(self.tensors[attn.layer_name].shape)}) cannot be read back"
                )
            self.layouts[kind] = layout
        return None

    def _flat(self, attn: Any) -> torch.Tensor:
        """The cache as [blocks, ...]; vLLM 0.32 keeps blocks in the first dimension."""
        return self.tensors[attn.layer_name]

    def _kind(self, attn: Any) -> tuple[Any, ...]:
        cache = self.tensors[attn.layer_name]
        heads, width = attn.num_kv_heads, attn.head_size
        return (*cache.shape[1:], cache.dtype, heads, width, type(attn.impl))

    def _probe(self, attn: Any) -> Layout | None:
        """Write each element's number, digit by digit, into block 0 and look where it lands."""
        cache, heads, width = self._flat(attn), attn.num_kv_heads, attn.head_size
        elements = 2 * self.block_size * heads * width
        shape = (2, self.block_size, heads, width)
        numbers = torch.arange(elements, device=cache.device).view(shape)
        slots = torch.arange(self.block_size, device=cache.device)
        found = torch.zeros(cache[0].numel(), dtype=torch.int64, device=cache.device)
        written = torch.zeros_like(found, dtype=torch.bool)
        before, scale = cache[0].clone(), 1
        try:
            for fill in (1, 2):  # what follows both fills is written, the rest is padding
                keys = torch.full(shape[1:], fill, dtype=cache.dtype, device=cache.device)
                self.write(attn, keys, keys.clone(), slots)
                follows = cache[0].flatten() == fill
                written = follows if fill == 1 else written & follows
            while scale < elements:
                keys, values = (numbers // scale % BASE).to(cache.dtype).unbind()
                self.write(attn, keys.contiguous(), values.contiguous(), slots)
                found += cache[0].flatten().long() * scale
                scale *= BASE
        finally:
            cache[0] = before
        offsets = written.nonzero()[:, 0]
        if not torch.equal(found[offsets].sort().values, numbers.flatten()):
            return None
        places = torch.empty(elements, dtype=torch.int64, device=cache.device)
        places[found[offsets]] = offsets
        return Layout.of(places.view(shape))


def slots_of(
    blocks: torch.Tensor, block_size: int, start: int, stop: int
) -> torch.Tensor:
    """Slots of positions ``[start, stop)`` of a sequence with these blocks: int64.

    Args:
        blocks: int64 [B], ids in order; the result is on their device.
    """
    positions = torch.arange(start, stop, device=blocks.device)
    return blocks[positions // block_size] * block_size + positions % block_size
