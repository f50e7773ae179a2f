"""KV-cache groups of layers that see all positions, some of which keep fewer tokens than others.

Only this module needs vLLM's registry of specifications and managers. It is imported where layers
are put into groups, and where such a specification comes from another process.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from qm_vllm_patches.block_pool import hole, skipped_blocks


@dataclass(frozen=True, kw_only=True)
class LayerGroupSpec(FullAttentionSpec):
    """Keys and values of all positions, in layers that share a block table with their like alone.

    Attributes:
        keeps_less: of a compressed prompt, these layers keep fewer tokens than the others.
    """

    keeps_less: bool = False

    @classmethod
    def merge(cls, specs: list[Any]) -> Any:
        """Of layers that keep as much; vLLM takes AssertionError for "these do not fit"."""
        first = specs[0]
        assert all(type(one) is cls and one.keeps_less == first.keeps_less for one in specs)
        return replace(super().merge(specs), keeps_less=first.keeps_less)

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, Any]) -> bool:
        """Whether all these layers can share one block table."""
        return all(
            isinstance(one, LayerGroupSpec) and one.keeps_less == self.keeps_less
            for one in kv_cache_specs.values()
        )


class LayerGroupManager(FullAttentionManager):
    """Stands vLLM's placeholder block where a compressed prompt has nothing in these layers."""

    _skipped = 0

    @classmethod
    def find_longest_cache_hit(cls, **known: Any) -> tuple[tuple[list[Any], ...], int]:
        """Behind the hole, as in any layer that sees all positions."""
        absent = hole() if known["kv_cache_spec"].keeps_less else 0
        if not absent:
            return super().find_longest_cache_hit(**known)
        before = absent * known["kv_cache_spec"].block_size
        if known["max_length"] <= before:
            return tuple([] for _ in known["kv_cache_group_ids"]), 0
        known["block_hashes"] = known["block_hashes"][absent:]
        known["max_length"] -= before
        found, length = super().find_longest_cache_hit(**known)
        if not length:
            return found, 0
        null = known["block_pool"].null_block
        return tuple([null] * absent + own for own in found), length + before

    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        """Of the request that is worked on, as vLLM asks it of sliding windows."""
        return min(self._skipped, num_computed_tokens)

    @contextmanager
    def _of(self, request_id: str) -> Iterator[None]:
        if self.kv_cache_spec.keeps_less:
            self._skipped = skipped_blocks(self.block_pool).get(request_id, 0) * self.block_size
        try:
            yield
        finally:
            self._skipped = 0

    def get_num_blocks_to_allocate(self, request_id: str, *args: Any, **kwargs: Any) -> int:
        """Without those that it will not have."""
        with self._of(request_id):
            return super().get_num_blocks_to_allocate(request_id, *args, **kwargs)

    def add_local_computed_blocks(self, request_id: str, *args: Any, **kwargs: Any) -> None:
        """The placeholder, then what the prefix cache had."""
        with self._of(request_id):
            super().add_local_computed_blocks(request_id, *args, **kwargs)

    def allocate_external_computed_blocks(self, request_id: str, *args: Any, **kwargs: Any) -> None:
        """For what a connector brings."""
        with self._of(request_id):
            super().allocate_external_computed_blocks(request_id, *args, **kwargs)


# vLLM registers its own on first use, and only while there are none.
KVCacheSpecRegistry._ensure_registered()
KVCacheSpecRegistry.register(LayerGroupSpec, LayerGroupManager)


def grouped(specs: dict[str, Any], keep_more: Collection[str]) -> dict[str, Any]:
    """The layers' specifications, so that vLLM gives those that keep more a group of their own.

    Layers that do not all see all positions, or are not all of one size, stay as they are.

    Args:
        specs: vLLM's, by layer. keep_more: names of the layers that keep more than the others.
    """
    kinds = set(specs.values())
    if len(kinds) != 1 or not all(type(one) is FullAttentionSpec for one in kinds):
        return specs
    own = {one.name: getattr(next(iter(kinds)), one.name) for one in fields(FullAttentionSpec)}
    return {
        name: LayerGroupSpec(**own, keeps_less=name not in keep_more) for name in specs
    }
