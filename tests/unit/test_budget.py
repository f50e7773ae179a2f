"""Budget, protected positions, block rounding and selection."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm.compress import (
    choose_budget,
    in_blocks,
    protected_mask,
    protected_positions,
    round_to_blocks,
    select,
)
from qm_vllm.config import ConfigError, QuickMergeConfig


@pytest.mark.parametrize(
    ("fields", "n", "expected"),
    [
        ({}, 1000, 400),
        ({}, 1, 1),
        ({"ratio": 0.3}, 10, 3),
        ({"ratio": 0.3}, 11, 4),
        ({"ratio": 1e-6}, 10, 1),
        ({"ratio": 1.0}, 10, 10),
        ({"ratio": 0.5, "max_kept": 100}, 1000, 100),
        ({"max_kept": 100}, 1000, 100),
        ({"max_kept": 100}, 50, 50),
        ({"ratio": 0.1, "min_kept": 300}, 1000, 300),
        ({"ratio": 0.1, "min_kept": 300}, 200, 200),
    ],
)
def test_budget_without_alpha(fields, n, expected):
    assert choose_budget(QuickMergeConfig(**fields), n, None) == expected


def test_budget_with_alpha():
    saliency = torch.linspace(0, 1, 101)
    config = QuickMergeConfig(alpha=0.75)
    assert choose_budget(config, 101, saliency) == 26
    assert choose_budget(QuickMergeConfig(alpha=0.75, ratio=0.1), 101, saliency) == 11
    assert choose_budget(QuickMergeConfig(alpha=0.1, max_kept=80), 101, saliency) == 80
    assert choose_budget(QuickMergeConfig(alpha=1.0), 101, saliency * 0.5) == 1
    with pytest.raises(ValueError, match=r"alpha=0.75 .*\[101\]"):
        choose_budget(config, 101, None)
    with pytest.raises(ValueError, match="not \\[3\\]"):
        choose_budget(config, 101, torch.ones(3))


def test_protected_positions_raise_the_budget_but_not_past_the_cap():
    assert choose_budget(QuickMergeConfig(ratio=0.1), 100, None, protected=40) == 40
    with pytest.raises(ConfigError, match="max_kept=80 cannot hold the 90 protected"):
        choose_budget(QuickMergeConfig(max_kept=80), 100, None, protected=90)
    assert choose_budget(QuickMergeConfig(max_kept=80), 70, None, protected=70) == 70
    with pytest.raises(ValueError, match="num_tokens=0"):
        choose_budget(QuickMergeConfig(), 0, None)


def test_protected_mask():
    config = QuickMergeConfig(protect_first=2, protect_last=3, protect_ranges=((5, 7), (18, 99)))
    ids = [9] * 20
    ids[10] = 1
    expected = {0, 1, 5, 6, 10, 17, 18, 19}
    mask = protected_mask(config, ids, 20, frozenset({1, 2}))
    assert set(mask.nonzero()[:, 0].tolist()) == expected
    as_tensor = protected_mask(config, torch.tensor(ids), 20, frozenset({1, 2}))
    assert torch.equal(mask, as_tensor)
    assert not protected_mask(config, None, 20, frozenset({1}))[10]
    off = QuickMergeConfig(protect_special=False, protect_last=3)
    assert not protected_mask(off, ids, 20, frozenset({1}))[10]
    assert protected_mask(QuickMergeConfig(), None, 3, frozenset()).all()
    with pytest.raises(ValueError, match="token_ids has 2 entries for 3"):
        protected_mask(config, [1, 2], 3, frozenset())


def test_special_positions_and_ranges_are_protected_as_ids_are():
    config = QuickMergeConfig(protect_first=2, protect_last=3, protect_ranges=((5, 7),))
    mask = protected_positions(config, 20, special=[10, 12], ranges=[(14, 15), (18, 99)])
    assert set(mask.nonzero()[:, 0].tolist()) == {0, 1, 5, 6, 10, 12, 14, 17, 18, 19}
    ids = [9] * 20
    ids[10] = ids[12] = 1
    by_ids = protected_mask(config, ids, 20, frozenset({1}))
    assert torch.equal(protected_positions(config, 20, special=iter([10, 12])), by_ids)
    off = QuickMergeConfig(protect_special=False)
    assert torch.equal(protected_positions(off, 99, special=[50]), protected_positions(off, 99))
    with pytest.raises(IndexError):
        protected_positions(config, 20, special=[20])


@pytest.mark.parametrize(
    ("k", "n", "floor", "block", "expected"),
    [
        (40, 100, 10, 16, 33),
        (33, 100, 33, 16, 33),
        (40, 100, 34, 16, 49),
        (5, 100, 1, 16, 17),
        (16, 100, 0, 16, 17),
        (5, 17, 1, 16, 17),
        (5, 12, 1, 16, 12),
        (99, 100, 98, 16, 100),
        (100, 100, 1, 16, 100),
        (7, 100, 1, 1, 7),
        (1, 100, 1, 1, 2),
    ],
)
def test_round_to_blocks(k, n, floor, block, expected):
    assert round_to_blocks(k, n, floor, block) == expected


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 300), st.integers(1, 64))
def test_round_to_blocks_properties(k, n, floor, block):
    k, floor = min(k, n), min(floor, n)
    result = round_to_blocks(k, n, floor, block)
    fitting = [m for m in range(block + 1, n, block) if m >= floor]
    below = [m for m in fitting if m <= k]
    if k == n or not fitting:
        assert result == n
    else:
        assert result == (max(below) if below else min(fitting))


def test_round_to_blocks_wants_a_block():
    with pytest.raises(ValueError, match="block_size=0"):
        round_to_blocks(5, 10, 1, 0)


@given(st.data())
def test_select_takes_protected_then_best_then_lowest(data):
    n = data.draw(st.integers(1, 40))
    score = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    protected = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    k = data.draw(st.integers(1, n))
    got = select(torch.tensor(score, dtype=torch.float32), k, torch.tensor(protected))
    order = sorted(range(n), key=lambda i: (not protected[i], -score[i], i))
    assert got.dtype == torch.int64
    assert got.tolist() == sorted(order[: max(k, sum(protected))])


@pytest.mark.parametrize(
    ("score", "k", "mask", "words"),
    [
        (torch.ones(3), 0, torch.zeros(3), "k=0"),
        (torch.ones(3), 4, torch.zeros(3), "k=4"),
        (torch.ones(3), 1, torch.zeros(2), "both be"),
        (torch.tensor([1.0, float("nan")]), 1, torch.zeros(2), "finite"),
    ],
)
def test_select_refuses(score, k, mask, words):
    with pytest.raises(ValueError, match=words):
        select(score, k, mask.bool())


@given(
    st.integers(1, 400), st.integers(1, 400), st.integers(0, 60), st.sampled_from([None, 1, 16, 32])
)
def test_what_fits_into_max_kept_is_known_before_anything_is_scored(most, n, floor, block):
    """In whole blocks, too: whatever K the content gives, it fits if the largest one does."""
    config = QuickMergeConfig(max_kept=most, protect_first=0, protect_last=1)
    if floor > min(most, n):
        return

    def fits(k: int) -> bool:
        try:
            return in_blocks(config, k, n, floor, block) <= min(most, n)
        except ConfigError:
            return False

    largest = choose_budget(config, n, None, floor)
    assert len({fits(k) for k in range(max(1, floor), largest + 1)}) == 1
