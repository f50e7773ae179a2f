"""Merged states against the weighted means they are defined by."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_vllm import config as configuration
from qm_vllm.compress import MAX_DROPPED_SHARE, group_tokens, merge_states, token_masses
from qm_vllm.config import QuickMergeConfig
from tests.unit import helpers

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def prompt(n=50, k=9, d=12, seed=0, dtype=torch.float32, grouping="contiguous"):
    generator = torch.Generator().manual_seed(seed)
    x = helpers.states(n, d, seed, dtype)
    kept = torch.randperm(n, generator=generator)[:k].sort().values
    saliency = torch.rand(n, generator=generator)
    groups = group_tokens(x, kept, QuickMergeConfig(grouping=grouping))
    return x, kept, groups, saliency


@pytest.mark.parametrize("grouping", configuration.GROUPINGS)
@pytest.mark.parametrize("merge", configuration.MERGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_state_is_the_mass_weighted_mean(grouping, merge, dtype):
    x, kept, groups, saliency = prompt(dtype=dtype, grouping=grouping)
    config = QuickMergeConfig(merge=merge, epsilon=0.05)
    masses = token_masses(kept, groups, saliency, config)
    got = merge_states(x, kept, groups, saliency, config)
    assert got.dtype == dtype
    assert got.shape == (9, 12)
    for g in range(9):
        inside = groups == g
        mean = (masses[inside, None] * x[inside].double()).sum(0) / masses[inside].sum()
        tolerance = 4 * max(torch.finfo(dtype).eps, 1e-9)
        assert torch.allclose(got[g].double(), mean, rtol=tolerance, atol=tolerance)
    assert torch.equal(got, merge_states(x, kept, groups, saliency, config))


@pytest.mark.parametrize("dtype", DTYPES)
def test_select_and_groups_of_one_are_their_anchor_bit_for_bit(dtype):
    x, kept, groups, saliency = prompt(dtype=dtype)
    x[kept[0], 0] = -0.0
    selected = merge_states(x, kept, groups, saliency, QuickMergeConfig(merge="select"))
    assert torch.equal(selected, x[kept])
    everything = torch.arange(50)
    for merge in configuration.MERGES:
        config = QuickMergeConfig(merge=merge)
        same = merge_states(x, everything, everything, saliency, config)
        assert torch.equal(same, x)
        assert torch.equal(torch.signbit(same), torch.signbit(x))


@pytest.mark.parametrize("grouping", configuration.GROUPINGS)
def test_merging_some_columns_at_a_time_changes_no_bit(monkeypatch, grouping):
    x, kept, groups, saliency = prompt(grouping=grouping)
    whole = merge_states(x, kept, groups, saliency, QuickMergeConfig())
    monkeypatch.setattr("qm_vllm.compress.merge.AT_ONCE", 5 * 41 * 4)
    assert torch.equal(merge_states(x, kept, groups, saliency, QuickMergeConfig()), whole)


def test_mean_is_the_plain_mean():
    x = torch.tensor([[1.0], [2.0], [6.0], [10.0]])
    config = QuickMergeConfig(merge="mean")
    groups = torch.tensor([0, 0, 0, 1])
    got = merge_states(x, torch.tensor([1, 3]), groups, torch.ones(4), config)
    assert got.tolist() == [[3.0], [10.0]]


def test_paper_masses_where_the_cap_does_not_bind():
    saliency = torch.tensor([0.5, 0.9, 0.2, 0.8])
    groups, kept = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 3])
    masses = token_masses(kept, groups, saliency, QuickMergeConfig(epsilon=0.01))
    assert torch.allclose(masses, torch.tensor([0.5, 0.01, 0.01, 0.8], dtype=torch.float64))
    zero = merge_states(
        torch.randn(4, 3), kept, groups, saliency, QuickMergeConfig(epsilon=0.0)
    )
    assert zero.shape == (2, 3)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 60), data=st.data(), epsilon=st.floats(0, 1), seed=st.integers(0, 99),
)
def test_dropped_mass_of_a_group_is_capped(n, data, epsilon, seed):
    k = data.draw(st.integers(1, n))
    _, kept, groups, saliency = prompt(n, k, 2, seed)
    masses = token_masses(kept, groups, saliency, QuickMergeConfig(epsilon=epsilon))
    totals = torch.zeros(k, dtype=torch.float64).index_add(0, groups, masses)
    anchors = masses[kept]
    assert torch.equal(anchors, saliency[kept].double().clamp_min(1e-3))
    sizes = torch.bincount(groups)
    expected = torch.minimum(epsilon * (sizes - 1), MAX_DROPPED_SHARE * anchors)
    assert torch.allclose(totals - anchors, expected, atol=1e-12)


def test_long_run_cannot_outweigh_its_anchor():
    x = torch.ones(1000, 4)
    x[0] = 0
    got = merge_states(
        x, torch.tensor([0]), torch.zeros(1000, dtype=torch.long), torch.full((1000,), 0.5),
        QuickMergeConfig(epsilon=1.0),
    )
    assert torch.allclose(got, torch.full((1, 4), 0.1 / 1.1))


def test_impossible_arguments_are_named():
    x, kept, groups, saliency = prompt()
    config = QuickMergeConfig()
    with pytest.raises(ValueError, match="own group"):
        merge_states(x, kept, groups.roll(5), saliency, config)
    with pytest.raises(ValueError, match="saliency must be"):
        merge_states(x, kept, groups, saliency[1:], config)
    with pytest.raises(ValueError, match="states must be"):
        merge_states(x[1:], kept, groups, saliency, config)
    with pytest.raises(ValueError, match="kept must be"):
        token_masses(kept.flip(0), groups, saliency, config)
