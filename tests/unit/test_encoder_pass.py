"""Several prompts in one pass: attention within each, what is captured, and who goes together."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.dense.attention import choose_backend
from qm_vllm.engine.dense.cpu_attention import CpuFlashAttention, CpuKernelAttention
from qm_vllm.engine.dense.sdpa_attention import SdpaAttention
from qm_vllm.engine.dense.taps import AttentionTap, LayerRecord
from qm_vllm.engine.jobs.encoder_pass import gather
from qm_vllm.engine.messages import JobSpec
from tests.unit.test_dense_runner import HEADS, KV_HEADS, attention

SIZE = 32
BOUNDS = [0, 1, 130, 386, 400]


def rows(seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(BOUNDS[-1], heads, SIZE, generator=generator)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )


def written_out(query, key, value, window=None):
    """Causal attention of one prompt by the book, in float64."""
    query, key, value = (x.double().transpose(0, 1) for x in (query, key, value))
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, 0) for x in (key, value))
    place = torch.arange(query.shape[1])
    apart = place[:, None] - place
    hidden = (apart < 0) | (apart >= (window or len(place)))
    logits = (query @ key.transpose(1, 2) * attention().scale).masked_fill(hidden, -torch.inf)
    return (logits.softmax(-1) @ value).transpose(0, 1).float()


BACKENDS = [SdpaAttention, CpuFlashAttention, CpuKernelAttention]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("chunk", [1, 57, 128, 400])
def test_a_prompt_in_chunks_attends_as_by_the_book(backend, window, chunk):
    attn = attention()
    attn.head_size = SIZE
    dense = backend(attn, torch.float32, torch.device("cpu"))
    query, key, value = rows(3)
    dense.begin(400, window)
    got = torch.cat([
        dense.attend(*(x[start : start + chunk] for x in (query, key, value)), start)
        for start in range(0, 400, chunk)
    ])
    torch.testing.assert_close(got, written_out(query, key, value, window), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("given", [True, False])
def test_rows_that_precede_a_prompt_are_seen_as_if_they_had_been_run(backend, window, given):
    attn = attention()
    attn.head_size = SIZE
    dense, before = backend(attn, torch.float32, torch.device("cpu")), 150
    query, key, value = rows(3)
    keys, values = (torch.zeros_like(key) for _ in range(2))
    dense.begin(400, window, *((keys, values) if given else ()))
    dense.precede(key[:before], value[:before])
    got = torch.cat([
        dense.attend(*(x[start : start + 100] for x in (query, key, value)), start)
        for start in range(before, 400, 100)
    ])
    wanted = written_out(query, key, value, window)[before:]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(keys, key) is given
    assert torch.equal(values, value) is given


@pytest.mark.parametrize(("isa", "expected"), [
    ("vec", CpuFlashAttention), ("vec16", CpuFlashAttention), ("amx", CpuKernelAttention),
])
def test_the_kernel_of_vllm_is_taken_where_it_has_matrix_units(monkeypatch, isa, expected):
    from vllm.v1.attention.backends import cpu_attn

    monkeypatch.setattr(cpu_attn, "_get_attn_isa", lambda *_: isa)
    assert type(choose_backend(attention(), torch.float32, torch.device("cpu"))) is expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, 20])
def test_each_prompt_attends_to_itself_alone(backend, window):
    attn = attention()
    attn.head_size = SIZE
    dense = backend(attn, torch.float32, torch.device("cpu"))
    query, key, value = rows()
    keys, values = torch.zeros_like(key), torch.zeros_like(value)
    for _ in range(2):  # the second layer finds the first one's scratch
        dense.begin(BOUNDS[-1], window, keys, values, len(BOUNDS) - 1)
        got = dense.attend_prompts(query, key, value, BOUNDS)
    for low, high in pairwise(BOUNDS):
        part = slice(low, high)
        expected = written_out(query[part], key[part], value[part], window)
        torch.testing.assert_close(got[part], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(keys, key)
    assert torch.equal(values, value)


class Nothing:
    """Attention that answers with zeros."""

    def attend(self, query, *_):
        return torch.zeros_like(query)

    attend_prompts = attend


@pytest.mark.parametrize("window", [1, 14, 64, 500])
@pytest.mark.parametrize("bounds", [BOUNDS, [0, 400]])
def test_the_last_queries_of_each_prompt_are_kept(bounds, window):
    query, key, value = rows(1)
    record = LayerRecord(window)
    sizes = [min(window, high - low) for low, high in pairwise(bounds)]
    record.queries = torch.zeros(sum(sizes), HEADS, SIZE)
    attn = attention()
    attn.head_size = SIZE
    tap = AttentionTap(Nothing(), attn, bounds, record)
    step = 400 if len(bounds) > 2 else 150  # several prompts are one chunk
    for start in range(0, 400, step):
        tap.start = start
        tap(*(x[start : start + step].flatten(1) for x in (query, key, value)))
    for part, size, high in zip(record.split(bounds), sizes, bounds[1:], strict=True):
        assert torch.equal(part.queries, query[high - size : high])


def test_a_record_is_split_into_views():
    record, (_, key, value) = LayerRecord(16), rows(2)
    record.rotated_keys, record.values = key, value
    for part, (low, high) in zip(record.split(BOUNDS), pairwise(BOUNDS), strict=True):
        assert torch.equal(part.rotated_keys, key[low:high])
        assert part.values.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
        assert part.sink is part.queries is None
    assert record.split([0, 400]) == [record]


def spec(tokens: int, depth: int = 4, **options) -> JobSpec:
    return JobSpec(
        0, str(tokens), [7] * tokens, QuickMergeConfig(**options), depth, (1, 2), [], 32
    )


def test_prompts_go_together_in_order_as_far_as_a_chunk_holds():
    assert gather([spec(n) for n in (300, 900, 500, 200, 24)], 1024) == [[0, 2, 3, 4], [1]]
    assert gather([spec(n) for n in (2000, 600, 600)], 1024) == [[0], [1], [2]]
    assert gather([], 1024) == []


@pytest.mark.parametrize("other", [
    spec(200, depth=3), spec(200, saliency="entropy"), spec(200, delivery="prefill"),
    spec(200, window_layers=3), spec(200, query_visible=False),
])
def test_prompts_that_need_another_pass_stay_apart(other):
    assert gather([spec(200), other, spec(100, ratio=0.9)], 1024) == [[0, 2], [1]]
