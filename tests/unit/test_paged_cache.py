"""Reading a paged cache back: the layout is learned from what a backend's update does."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm.engine.jobs.job_cache import JobCache
from qm_vllm_patches.kv_cache import PagedCache, slots_of

SIZE, HEADS, WIDTH, BLOCKS = 16, 3, 8, 12
ELEMENTS = 2 * SIZE * HEADS * WIDTH


class Backend:
    """Packs a block's numbers in any order, with padding between them, as kernels may."""

    def __init__(self, seed: int = 0, padding: int = 10, lossy: bool = False) -> None:
        self.padding, self.lossy = padding, lossy
        order = torch.randperm(ELEMENTS + padding, generator=torch.Generator().manual_seed(seed))
        self.order = order[:ELEMENTS].view(2, SIZE, HEADS, WIDTH)

    @classmethod
    def in_steps(cls, outermost: Sequence[int], gap: int) -> Backend:
        """Packs them in a fixed order of the four dimensions, with a gap between two numbers."""
        backend, shape = cls(padding=(gap - 1) * ELEMENTS), (2, SIZE, HEADS, WIDTH)
        numbers = gap * torch.arange(ELEMENTS).view([shape[one] for one in outermost])
        backend.order = numbers.permute([outermost.index(one) for one in range(4)])
        return backend

    def do_kv_cache_update(self, layer, keys, values, cache, slots) -> None:
        assert keys.is_contiguous()
        for key, value, slot in zip(keys, values, slots.tolist(), strict=True):
            block, place = divmod(slot, SIZE)
            row = cache[block].view(-1)
            row[self.order[0, place].flatten()] = key.flatten().to(cache.dtype)
            row[self.order[1, place].flatten()] = value.flatten().to(cache.dtype)
            if self.lossy:
                row[self.order[0, place].flatten()] = 0


def made(backend: Backend, dtype: torch.dtype = torch.float32, layers: int = 1):
    attns = [
        SimpleNamespace(
            layer_name=f"layer {i}", num_kv_heads=HEADS, head_size=WIDTH, impl=backend
        )
        for i in range(layers)
    ]
    tensors = {
        attn.layer_name: torch.zeros(BLOCKS, 2, (ELEMENTS + backend.padding) // 2, dtype=dtype)
        for attn in attns
    }
    return attns, PagedCache(tensors, SIZE)


def rows(count: int, seed: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, HEADS, WIDTH, generator=generator).to(dtype).unbind()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(seed=st.integers(0, 1000), blocks=st.lists(
    st.integers(1, BLOCKS - 1), min_size=1, max_size=5, unique=True
), short=st.integers(0, SIZE - 1))
def test_what_was_written_is_read(dtype, seed, blocks, short):
    check_reading(Backend(seed), dtype, seed, blocks, short)


@given(order=st.permutations(range(4)), gap=st.integers(1, 3), short=st.integers(0, SIZE - 1))
def test_what_was_written_in_steps_is_read_as_it_lies(order, gap, short):
    layout = check_reading(Backend.in_steps(order, gap), torch.float32, 1, [5, 2, 9], short)
    assert all(layout.steps)


@pytest.mark.parametrize("packed", [0, 1])
def test_keys_may_lie_in_steps_where_values_do_not(packed):
    backend = Backend.in_steps(range(4), 1)
    backend.order[packed] = backend.order[packed].roll(1, 0).flip(1)
    layout = check_reading(backend, torch.float32, 2, [3, 1], 0)
    assert [one is None for one in layout.steps] == [packed == 0, packed == 1]


def check_reading(backend, dtype, seed, blocks, short):
    (attn,), cache = made(backend, dtype)
    assert cache.learn([attn]) is None
    ids, count = torch.tensor(blocks), len(blocks) * SIZE - short
    keys, values = rows(count, seed, dtype)
    cache.write(attn, keys, values, slots_of(ids, SIZE, 0, count))
    got = cache.read(attn, ids, count)
    assert torch.equal(cache.keys(attn, ids, count), got[0])
    some, known = torch.arange(0, count, 3), {}
    for _ in range(2):  # found, and then known
        for part, whole in zip(cache.rows(attn, ids, some, known), got, strict=True):
            assert torch.equal(part, whole[some])
    assert len(known) == 1
    cache.tensors = {name: spread(one) for name, one in cache.tensors.items()}
    for part, whole in zip(cache.rows(attn, ids, some, {}), got, strict=True):
        assert torch.equal(part, whole[some])
    assert torch.equal(got[0], keys)
    assert torch.equal(got[1], values)
    for part, whole in zip(cache.read(attn, ids, count), got, strict=True):
        assert torch.equal(part, whole)
    (layout,) = set(cache.layouts.values())
    return layout


def spread(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, but not one after the other in memory."""
    return torch.stack((tensor, tensor), -1)[..., 0]


def test_learning_leaves_the_placeholder_block_as_it_was():
    (attn,), cache = made(Backend())
    tensor = cache.tensors[attn.layer_name]
    tensor.fill_(7)
    assert cache.learn([attn]) is None
    assert (tensor == 7).all()


def test_a_cache_that_does_not_keep_its_numbers_is_refused_with_a_sentence():
    (attn,), cache = made(Backend(lossy=True))
    assert "the KV cache of Backend (shape" in cache.learn([attn])


def test_blocks_are_copied_in_all_layers():
    attns, cache = made(Backend(), layers=3)
    before = {name: tensor.normal_().clone() for name, tensor in cache.tensors.items()}
    cache.copy([3, 5], [7, 2])
    for attn in attns:
        tensor, was = cache.tensors[attn.layer_name], before[attn.layer_name]
        assert torch.equal(tensor[7], was[3])
        assert torch.equal(tensor[2], was[5])
        assert torch.equal(tensor[[0, 1, 3, 4, 5, 6]], was[[0, 1, 3, 4, 5, 6]])


@pytest.mark.parametrize("aside", [False, True])
@given(kept=st.sets(st.integers(0, 69), min_size=1, max_size=69), seed=st.integers(0, 99))
def test_a_result_is_written_over_the_rows_it_was_chosen_from(aside, kept, seed):
    """Layer by layer, in the job's own blocks; other blocks are not touched."""
    attns, cache = made(Backend(seed), layers=2)
    cache.learn(attns)
    blocks, count = [9, 2, 11, 4, 1], 70
    layers = [SimpleNamespace(module=attn) for attn in attns]
    job = JobCache(cache, blocks, layers, count, torch.device("cpu"), aside=aside)
    wrote = [rows(count, seed + layer) for layer in range(2)]
    for layer, (keys, values) in enumerate(wrote):
        for start in range(0, count, 32):
            part = slice(start, start + 32)
            job.put(layer, start, keys[part], values[part])
    index = torch.tensor(sorted(kept))
    for layer, (keys, values) in enumerate(wrote):
        whole = job.whole(layer)
        assert torch.equal(whole[0], keys)
        assert torch.equal(whole[1], values)
        job.deliver(layer, whole[0][index] + 1, whole[1][index])
    first = torch.tensor(blocks[: -(-len(index) // SIZE)])
    for attn, (keys, values) in zip(attns, wrote, strict=True):
        got = cache.read(attn, first, len(index))
        assert torch.equal(got[0], keys[index] + 1)
        assert torch.equal(got[1], values[index])
        others = [block for block in range(BLOCKS) if block not in blocks]
        assert not cache.tensors[attn.layer_name][others].any()


@pytest.mark.parametrize("aside", [False, True])
def test_rows_that_are_delivered_in_parts_are_read_again(aside):
    attns, cache = made(Backend(4), layers=2)
    cache.learn(attns)
    layers = [SimpleNamespace(module=attn) for attn in attns]
    job = JobCache(cache, [9, 2, 11], layers, 3 * SIZE, torch.device("cpu"), aside=aside)
    count = 2 * SIZE + 3
    for layer in range(2):
        keys, values = rows(count, layer)
        for start, stop in ((0, 5), (5, SIZE + 1), (SIZE + 1, count)):
            part = slice(start, stop)
            job.deliver(layer, keys[part], values[part], start=start, in_parts=True)
            for got, wanted in zip(job.delivered(layer, stop), (keys, values), strict=True):
                assert torch.equal(got, wanted[:stop])
        stored = cache.read(attns[layer], torch.tensor([9, 2, 11]), count)
        assert torch.equal(stored[0], keys)
        assert torch.equal(stored[1], values)
