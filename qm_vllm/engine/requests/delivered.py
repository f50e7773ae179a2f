"""Which blocks of a result belong where in a request's block tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qm_vllm.engine.facts import EngineFacts
from qm_vllm.engine.messages import BlockCopy, JobSpec
from qm_vllm.engine.native.blocks import first_blocks, split
from qm_vllm.engine.requests.job_board import BoardEntry, Store
from qm_vllm_patches.requests import RequestHandle


@dataclass(frozen=True)
class Place:
    """A result's blocks in one KV-cache group; the first of them is at this index there."""

    group: int
    first: int
    blocks: list[int]


def delivered(
    spec: JobSpec, blocks: Sequence[int], kept: int, windows: Sequence[int | None]
) -> Iterator[Place]:
    """The blocks of K - 1 positions, by KV-cache group.

    Args:
        kept: K. windows: of each group, its sliding window or None.
    """
    if not spec.native:
        yield Place(0, 0, list(blocks))
        return
    assert spec.block_size is not None
    first = first_blocks(kept, windows, spec.block_size, spec.group_kept)
    for group, own in enumerate(split(blocks, spec.group_blocks)):
        yield Place(group, first[group], own)


def copies(
    request_id: str, entry: BoardEntry, kept: int, blocks: Sequence[Sequence[int]],
    external: int, facts: EngineFacts,
) -> list[BlockCopy]:
    """Whole blocks that go from a result into a request's own.

    Args:
        kept: K. blocks: the request's, of each KV-cache group. external: how many of K - 1
            positions it does not have yet; they are the last ones.
    """
    size, found = facts.block_size, []
    first, last = (kept - 1 - external) // size, -(-(kept - 1) // size)
    for place in delivered(entry.spec, entry.blocks, kept, facts.windows):
        low = max(first, place.first)
        sources = place.blocks[low - place.first : last - place.first]
        found.append(BlockCopy(request_id, sources, list(blocks[place.group][low:last])))
    return found


def publish(
    store: Store, handle: RequestHandle, entry: BoardEntry, kept: int, facts: EngineFacts
) -> None:
    """Make a result's whole blocks findable as those of a request that was resized to it.

    Args:
        kept: K.
    """
    for place in delivered(entry.spec, entry.blocks, kept, facts.windows):
        whole = place.blocks[: (kept - 1) // facts.block_size - place.first]
        store.publish(handle, whole, place.group, place.first)
