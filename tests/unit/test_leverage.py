"""What stands out among keys, against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm.compress import leverage, standing_out
from qm_vllm.compress.leverage import RIDGE
from qm_vllm.config import QuickMergeConfig
from qm_vllm.engine.memory import DecoderShape, native_bytes
from tests.unit.peak_memory import peak_bytes


def one_by_one(rows: torch.Tensor) -> torch.Tensor:
    """Leverage of one head's rows [N, D]: what least squares gives each row of its own value."""
    rows = rows.double() - rows.double().mean(0)
    ridge = RIDGE * rows.square().sum(0).mean()
    gram = rows.T @ rows + ridge * torch.eye(rows.shape[1], dtype=torch.float64)
    return torch.stack([row @ torch.linalg.solve(gram, row) for row in rows])


def rows_of(seed: int, count: int, heads: int = 3, width: int = 16) -> torch.Tensor:
    """Keys [N, KVH, D] around a common direction, some dimensions large."""
    make = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, heads, width, generator=make)
    return rows * torch.linspace(0.1, 30, width) + 50 * torch.randn(width, generator=make)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 9, 300])
def test_leverage_is_its_definition(count, dtype):
    rows = rows_of(0, count).transpose(0, 1).to(dtype)
    found = leverage(rows)
    assert found.shape == (3, count)
    assert found.dtype == torch.float32
    want = torch.stack([one_by_one(head) for head in rows])
    torch.testing.assert_close(found.double(), want, rtol=2e-3, atol=1e-5)


@given(st.integers(0, 50), st.integers(1, 60), st.integers(1, 20))
def test_leverage_is_a_share_and_sums_to_the_dimensions_that_keys_use(seed, count, width):
    found = leverage(rows_of(seed, count, 2, width).transpose(0, 1))
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1 + 1e-3
    assert float(found.sum(1).max()) <= min(width, count) + 1e-2


@pytest.mark.parametrize("count", [3000, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_holds_what_the_plan_says(count, dtype):
    heads, width = 4, 64
    keys, values = (torch.randn(count, heads, width).to(dtype) for _ in range(2))
    most, _ = peak_bytes(lambda: standing_out(keys, values, torch.arange(heads)))
    shape = DecoderShape(
        hidden_size=heads * width, num_layers=1, num_heads=heads, num_kv_heads=heads,
        head_size=width, value_bytes=dtype.itemsize, cache_bytes=dtype.itemsize,
    )
    config = QuickMergeConfig(delivery="native", query_visible=False)
    held = keys.nbytes + values.nbytes
    assert held + most <= native_bytes(config, shape, count, count // 2) <= 4 * (held + most)


def test_a_key_unlike_all_others_stands_out_the_most():
    rows = rows_of(1, 200)
    rows[77, :, 0] += 40.0
    values = torch.ones(200, 3, 8)
    assert int(standing_out(rows, values, torch.tensor([0, 2])).argmax()) == 77


def test_turning_all_keys_of_a_head_alike_changes_nothing():
    rows = rows_of(2, 120)
    turn, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3)))
    torch.testing.assert_close(
        leverage(rows.transpose(0, 1)), leverage((rows @ turn).transpose(0, 1)),
        rtol=5e-3, atol=1e-5,
    )


@pytest.mark.parametrize("heads", [[], [1], [0, 2]])
def test_heads_that_count_are_scaled_and_summed(heads):
    keys, values = rows_of(4, 90), rows_of(5, 90, width=8)
    want = torch.zeros(90, dtype=torch.float64)
    for head in heads:
        one = one_by_one(keys[:, head]) * values[:, head].double().norm(dim=1)
        want += (one - one.mean()) / one.std(unbiased=False)
    found = standing_out(keys, values, torch.tensor(heads, dtype=torch.long))
    torch.testing.assert_close(found.double(), want, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("count", [1, 40])
def test_equal_keys_stand_out_alike(count):
    same = torch.ones(count, 2, 8)
    found = standing_out(same, same, torch.tensor([0, 1]))
    assert found.tolist() == [0.0] * count


def test_keys_in_fewer_dimensions_than_they_have_are_no_problem():
    flat = torch.randn(50, 1, 2, generator=torch.Generator().manual_seed(0)) @ torch.ones(2, 32)
    assert bool(torch.isfinite(leverage(flat.transpose(0, 1))).all())
