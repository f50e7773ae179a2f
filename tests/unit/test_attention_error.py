"""The live attention error against its definition, and the choice of K by it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm.compress import (
    AttentionError,
    compress,
    keep_order,
    sizes_between,
    smallest_within,
)
from qm_vllm.config import ConfigError, QuickMergeConfig
from tests.reference import attention_error as by_definition
from tests.unit import helpers


def layer(n: int, heads: int = 4, kv_heads: int = 2, window: int = 10, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(heads, window, n, generator=g)
    future = torch.ones(window, n, dtype=torch.bool).triu(n - window + 1)
    weights = logits.masked_fill(future, -torch.inf).softmax(-1)
    return weights, torch.randn(kv_heads, n, 8, generator=g), torch.randperm(n, generator=g)


@pytest.mark.parametrize("n", [10, 37, 200])
def test_errors_equal_the_definition(n):
    weights, values, order = layer(n)
    sizes = [1, 4, n // 2, n]
    got = AttentionError.of(weights, values, order, sizes).relative()
    expected = [by_definition(weights, values, order[:k].tolist()) for k in sizes]
    assert got.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert got[-1] < 1e-5


def test_layers_join_as_more_heads():
    first, second = layer(50), layer(50, seed=1)
    order = first[2]
    parts = [AttentionError.of(w, v, order, [5, 25]) for w, v, _ in (first, second)]
    joined = AttentionError.joined(parts).relative()
    assert torch.equal(joined, torch.maximum(parts[0].relative(), parts[1].relative()))


def test_shapes_that_do_not_belong_together_are_named():
    weights, values, order = layer(50)
    with pytest.raises(ValueError, match=r"\[4, 10, 50\].*do not belong together"):
        AttentionError.of(weights, values[:, :40], order, [5])
    for sizes in ([], [0, 4], [4, 4], [51]):
        with pytest.raises(ValueError, match="increase within 1 and 50"):
            AttentionError.of(weights, values, order, sizes)


@given(st.integers(1, 3000), st.integers(1, 9000), st.sampled_from([None, 1, 16, 128]))
def test_sizes_increase_to_n_and_fill_whole_blocks(low, more, block):
    count = low + more
    sizes = sizes_between(low, count, block)
    assert sizes[-1] == count
    assert sizes == sorted(set(sizes))
    assert sizes[0] >= low
    assert len(sizes) <= 65
    if block:
        assert all((size - 1) % block == 0 for size in sizes[:-1])


def test_the_smallest_size_from_which_on_all_errors_are_within():
    sizes = [10, 20, 30, 40]
    assert smallest_within(torch.tensor([0.5, 0.1, 0.3, 0.0]), sizes, 0.25) == 40
    assert smallest_within(torch.tensor([0.5, 0.25, 0.1, 0.0]), sizes, 0.25) == 20
    assert smallest_within(torch.tensor([0.1, 0.0, 0.0, 0.0]), sizes, 0.25) == 10
    assert smallest_within(torch.tensor([0.5, 0.4, 0.3, 0.1]), sizes, 0.0) == 40


@pytest.mark.parametrize("limit", [0.0, 0.1, 0.3, 0.7, 1.0])
def test_compress_keeps_the_fewest_tokens_that_meet_max_error(limit):
    n = 120
    weights, values, _ = layer(n)
    config = QuickMergeConfig(max_error=limit, protect_last=8)
    out = compress(helpers.states(n), config, attention=[weights], values=[values])
    error = by_definition(weights, values, out.kept.tolist())
    assert error <= limit + 1e-5
    protected = torch.zeros(n, dtype=torch.bool)
    protected[:4] = protected[-8:] = True
    sizes = sizes_between(12, n)
    if not out.untouched and out.num_kept > 12:
        order = keep_order(out.scores, protected)
        fewer = sizes[sizes.index(out.num_kept) - 1]
        assert by_definition(weights, values, order[:fewer].tolist()) > limit


def test_ratio_caps_max_error_and_missing_values_are_named():
    n = 120
    weights, values, _ = layer(n)
    x = helpers.states(n)
    config = QuickMergeConfig(max_error=0.0, ratio=0.25, protect_last=8)
    assert compress(x, config, attention=[weights], values=[values]).num_kept == 30
    with pytest.raises(ValueError, match="max_error needs the attention and the values"):
        compress(x, config, attention=[weights])


def test_max_error_is_a_budget_field_within_0_and_1():
    base = QuickMergeConfig(ratio=0.5)
    assert base.override({"max_error": 0.2}).ratio is None
    assert QuickMergeConfig(max_error=0.2).override({"ratio": 0.5}).max_error is None
    with pytest.raises(ConfigError, match=r"max_error=1\.5 must be"):
        QuickMergeConfig(max_error=1.5)
