"""Blocks of the paged KV cache, taken from vLLM's own pool for work that is no request's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import KVCacheBlock

    from qm_vllm_patches.requests import RequestHandle


_SKIPPED: WeakKeyDictionary[BlockPool, dict[str, int]] = WeakKeyDictionary()
_HOLE: ContextVar[int] = ContextVar("hole", default=0)


def skipped_blocks(pool: BlockPool) -> dict[str, int]:
    """By request: its first blocks that are nobody's in layers that keep less than others."""
    return _SKIPPED.setdefault(pool, {})


@contextmanager
def looking_up(hole: int) -> Iterator[None]:
    """While a request without so many of its first blocks is looked up in the prefix cache."""
    token = _HOLE.set(hole)
    try:
        yield
    finally:
        _HOLE.reset(token)


def hole() -> int:
    """First blocks that the request has not which is looked up now."""
    return _HOLE.get()


class BlockStore:
    """Takes blocks from the pool and gives them back.

    Blocks that are held here are in use as far as vLLM is concerned: nothing else gets them. vLLM
    clears its prefix cache only while no block is in use, so :meth:`on_reset` lets the holder
    give back its own first.
    """

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self.pool, self.block_size = pool, block_size
        self.held: dict[int, KVCacheBlock] = {}
        self.on_take: Callable[[Sequence[int]], None] | None = None

    @property
    def total(self) -> int:
        """Blocks that requests and jobs can have; one more is vLLM's placeholder."""
        return int(self.pool.num_gpu_blocks) - 1

    @property
    def free(self) -> int:
        """Blocks that nobody holds; some of them may be remembered by the prefix cache."""
        return int(self.pool.get_num_free_blocks())

    def take(self, count: int) -> list[int]:
        """Ids of new blocks.

        Raises:
            ValueError: fewer are free.
        """
        blocks = self.pool.get_new_blocks(count)
        self.held.update((block.block_id, block) for block in blocks)
        ids = [block.block_id for block in blocks]
        if self.on_take is not None:
            self.on_take(ids)
        return ids

    def give_back(self, ids: Sequence[int]) -> None:
        """Let blocks go. What the prefix cache knows of them stays until they are used again."""
        # In reverse order, so that the tail of a prompt is evicted first.
        self.pool.free_blocks([self.held.pop(one) for one in reversed(ids)])

    def publish(
        self, handle: RequestHandle, ids: Sequence[int], group: int = 0, first: int = 0
    ) -> None:
        """Make held blocks findable as those of a request's prompt.

        Args:
            group: of the KV cache. first: index in the prompt of the first of these blocks.
        """
        if not self.pool.enable_caching or not ids:
            return
        blocks: list[Any] = [None] * first + [self.held[one] for one in ids]
        self.pool.cache_full_blocks(
            request=handle.request, blocks=blocks, num_cached_blocks=first,
            num_full_blocks=len(blocks), block_size=self.block_size, kv_cache_group_id=group,
        )

    def leave_out(self, request_id: str, blocks: int) -> None:
        """So many of a request's first blocks are nobody's in layers that keep less; 0: none."""
        known = skipped_blocks(self.pool)
        known.pop(request_id, None)
        if blocks:
            known[request_id] = blocks

    def on_reset(self, callback: Callable[[], None]) -> None:
        """Call back before each attempt of vLLM to clear the prefix cache."""
        pool, own = self.pool, self.pool.reset_prefix_cache

        def reset_prefix_cache() -> bool:
            callback()
            return bool(own())

        pool.reset_prefix_cache = reset_prefix_cache  # type: ignore[method-assign]
