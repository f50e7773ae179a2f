"""Each grouping against a slow reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from qm_vllm import config as configuration
from qm_vllm.compress import GROUPINGS, group_tokens
from qm_vllm.compress.grouping import chain, contiguous, knn
from qm_vllm.config import QuickMergeConfig
from tests.unit import helpers


def test_registry_equals_the_configured_names():
    assert set(GROUPINGS) == set(configuration.GROUPINGS)


@st.composite
def prompts(draw):
    n = draw(st.integers(1, 60))
    kept = draw(st.sets(st.integers(0, n - 1), min_size=1))
    return helpers.states(n, 6, draw(st.integers(0, 99))), torch.tensor(sorted(kept))


@pytest.mark.parametrize("grouping", configuration.GROUPINGS)
@settings(max_examples=40, deadline=None)
@given(prompt=prompts())
def test_each_token_is_in_one_group_with_its_anchor(grouping, prompt):
    x, kept = prompt
    config = QuickMergeConfig(grouping=grouping)
    groups = group_tokens(x, kept, config)
    assert groups.shape == (x.shape[0],)
    assert groups.dtype == torch.int64
    assert groups[kept].tolist() == list(range(len(kept)))
    assert groups.min() >= 0
    assert groups.max() < len(kept)
    assert torch.equal(groups, group_tokens(x, kept, config))
    if grouping != "knn":
        assert bool((groups.diff() >= 0).all())


@given(prompt=prompts())
def test_contiguous_takes_the_nearest(prompt):
    x, kept = prompt
    expected = [
        min(range(len(kept)), key=lambda g: (abs(int(kept[g]) - i), g))
        for i in range(x.shape[0])
    ]
    assert contiguous.group(x, kept).tolist() == expected


@pytest.mark.parametrize("window", [0, 1, 7, 64, 1000])
def test_knn_takes_the_most_similar_in_the_window(window):
    x = helpers.states(600, 8)
    kept = torch.tensor(sorted({*range(0, 300, 7), 301, 302, 590}))
    got = knn.group(x, kept, window)
    nearest = contiguous.group(x, kept)
    for i in range(600):
        near = [g for g in range(len(kept)) if abs(int(kept[g]) - i) <= window]
        if i in kept.tolist():
            expected = kept.tolist().index(i)
        elif near:
            cosines = cosine_similarity(x[i].double(), x[kept[near]].double())
            expected = near[int(cosines.argmax())]
        else:
            expected = int(nearest[i])
        assert got[i] == expected


def slow_chain(x, kept):
    clusters = [[i] for i in range(x.shape[0])]
    unit = x.double() / x.double().norm(dim=1, keepdim=True)
    anchors = set(kept.tolist())
    while len(clusters) > len(anchors):
        best = None
        for i in range(len(clusters) - 1):
            if anchors & set(clusters[i]) and anchors & set(clusters[i + 1]):
                continue
            value = cosine_similarity(unit[clusters[i]].sum(0), unit[clusters[i + 1]].sum(0), dim=0)
            if best is None or value > best[0]:
                best = (value, i)
        i = best[1]
        clusters[i : i + 2] = [clusters[i] + clusters[i + 1]]
    return [g for g, cluster in enumerate(clusters) for _ in cluster]


@pytest.mark.parametrize("seed", range(5))
def test_chain_equals_slow_agglomeration(seed):
    x = helpers.states(40, 6, seed)
    kept = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:7].sort().values
    assert chain.group(x, kept).tolist() == slow_chain(x, kept)


def test_chain_puts_the_border_where_the_content_changes():
    x = torch.tensor([[1.0, 0.0]] * 7 + [[0.0, 1.0]] * 3)
    assert chain.group(x, torch.tensor([0, 9])).tolist() == [0] * 7 + [1] * 3


@pytest.mark.parametrize("grouping", configuration.GROUPINGS)
def test_zero_and_equal_rows(grouping):
    config = QuickMergeConfig(grouping=grouping)
    for x in (torch.zeros(9, 3), torch.ones(9, 3)):
        assert group_tokens(x, torch.tensor([2, 6]), config)[[2, 6]].tolist() == [0, 1]


@pytest.mark.parametrize(
    "kept", [torch.tensor([], dtype=torch.long), torch.tensor([1, 1]), torch.tensor([2, 1]),
             torch.tensor([0, 5]), torch.tensor([-1, 2]), torch.tensor([0.0]), torch.tensor(1)],
)
def test_impossible_kept_positions(kept):
    with pytest.raises(ValueError, match="kept must be"):
        group_tokens(torch.ones(5, 2), kept, QuickMergeConfig())
