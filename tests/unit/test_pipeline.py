"""The whole method on tensors, over the one list of methods."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_vllm import config as configuration
from qm_vllm.compress import Evidence, compress, finish, row_norms
from qm_vllm.config import ConfigError, QuickMergeConfig
from tests.unit import helpers

FIELDS = ("states", "kept", "groups", "scores")


def assert_same(one, two):
    for name in FIELDS:
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert (one.gamma, one.retained_norm, one.reconstruction_error) == (
        two.gamma, two.retained_norm, two.reconstruction_error
    )


def assert_valid(result, x, protected=()):
    n, k = x.shape[0], result.num_kept
    assert result.num_tokens == n
    assert result.states.shape == (k, x.shape[1])
    assert result.states.dtype == x.dtype
    assert bool(torch.isfinite(result.states).all())
    assert bool((result.kept.diff() > 0).all())
    assert result.groups[result.kept].tolist() == list(range(k))
    assert set(result.groups.tolist()) == set(range(k))
    assert set(protected) <= set(result.kept.tolist())
    assert 0 <= result.retained_norm <= result.gamma + 1e-9 <= 1 + 1e-8
    assert math.isfinite(result.reconstruction_error)


@pytest.mark.parametrize(("saliency", "grouping", "merge"), helpers.COMBINATIONS)
def test_every_combination_of_methods(saliency, grouping, merge):
    x = helpers.states(150, 24, dtype=torch.bfloat16)
    config = QuickMergeConfig(
        saliency=saliency, grouping=grouping, merge=merge, ratio=0.5, protect_ranges=((20, 25),)
    )
    before = x.clone()
    result = compress(x, config, **helpers.seen(150))
    assert torch.equal(x, before)
    assert result.num_kept == 75
    assert_valid(result, x, [*range(4), *range(118, 150), *range(20, 25)])
    assert_same(result, compress(x, config, **helpers.seen(150)))
    if merge == "select":
        assert torch.equal(result.states, x[result.kept])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_prompt_and_budget(data):
    n = data.draw(st.integers(1, 90))
    combination = data.draw(st.sampled_from(helpers.COMBINATIONS))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    first, last = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 20))
    low = data.draw(st.integers(1, 30))
    config = QuickMergeConfig(
        saliency=combination[0], grouping=combination[1], merge=combination[2],
        ratio=data.draw(st.none() | st.floats(0.01, 1)),
        alpha=data.draw(st.none() | st.floats(0, 1)),
        max_kept=data.draw(st.none() | st.integers(30, 95)),
        min_kept=low, protect_first=first, protect_last=last,
    )
    x = helpers.states(n, 6, dtype=dtype)
    result = compress(x, config, **helpers.seen(n))
    protected = [i for i in range(n) if i < first or i >= n - last]
    assert_valid(result, x, protected)
    assert result.num_kept <= min(n, config.max_kept or n)
    assert result.num_kept >= min(n, max(low, len(protected)))
    if result.untouched:
        assert torch.equal(result.states, x)
    assert_same(result, compress(x, config, **helpers.seen(n)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("saliency", configuration.SALIENCIES)
def test_ragged_batch_equals_single_prompts(saliency, dtype):
    lengths = [120, 1, 70, 95]
    config = QuickMergeConfig(saliency=saliency, ratio=0.3, protect_last=8, alpha=0.1)
    x = torch.full((4, 120, 12), float("nan"), dtype=dtype)
    layer = torch.full((4, 120, 8), float("nan"), dtype=dtype)
    attention = [torch.full((4, 3, 16, 120), float("nan")) for _ in range(2)]
    leverage = torch.full((4, 120), float("nan"))
    ids = torch.randint(0, 9, (4, 120), generator=torch.Generator().manual_seed(0))
    for row, size in enumerate(lengths):
        x[row, :size] = helpers.states(size, 12, row, dtype)
        layer[row, :size] = helpers.states(size, 8, row + 50, dtype)
        seen = helpers.seen(size, 16, row)
        leverage[row, :size] = seen["leverage"]
        for weights, paid in zip(attention, seen["attention"], strict=True):
            weights[row, :, :, :size] = paid.mean(1, keepdim=True) if size < 16 else paid
    together = compress(
        x, config, layer_states=[layer], attention=attention, leverage=leverage, token_ids=ids,
        special_ids=frozenset({3}), lengths=torch.tensor(lengths),
    )
    for row, size in enumerate(lengths):
        alone = compress(
            x[row, :size].clone(), config, layer_states=[layer[row, :size].clone()],
            attention=[weights[row, :, :, :size].clone() for weights in attention],
            leverage=leverage[row, :size].clone(),
            token_ids=ids[row, :size].tolist(), special_ids=frozenset({3}),
        )
        assert_same(together[row], alone)
        special = (ids[row, :size] == 3).nonzero()[:, 0].tolist()
        assert_valid(alone, x[row, :size], special)


def test_batch_without_lengths():
    x = torch.stack([helpers.states(100, seed=1), helpers.states(100, seed=2)])
    both = compress(x, QuickMergeConfig())
    assert_same(both[1], compress(x[1], QuickMergeConfig()))


@pytest.mark.parametrize(
    ("n", "fields"),
    [(1, {}), (36, {}), (30, {}), (200, {"ratio": 1.0}), (200, {"max_kept": 200}),
     (200, {"min_kept": 500}), (200, {"alpha": 0.0}), (70, {"max_kept": 70, "ratio": 1.0})],
)
def test_prompts_that_come_back_untouched(n, fields):
    x = helpers.states(n)
    result = compress(x, QuickMergeConfig(**fields))
    assert result.untouched
    assert torch.equal(result.states, x)
    assert result.kept.tolist() == result.groups.tolist() == list(range(n))
    assert (result.gamma, result.retained_norm, result.reconstruction_error) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize(("saliency", "grouping", "merge"), helpers.COMBINATIONS)
def test_equal_tokens_keep_the_first_ones(saliency, grouping, merge, value):
    x = torch.full((100, 4), value)
    attention = [torch.full((2, 16, 100), 0.01)] * 2
    config = QuickMergeConfig(
        saliency=saliency, grouping=grouping, merge=merge, ratio=0.8, protect_first=0
    )
    result = compress(x, config, attention=attention, leverage=torch.full((100,), value))
    assert_valid(result, x)
    assert torch.allclose(result.states, torch.full((80, 4), value))
    if saliency in ("entropy", "norm", "ned", "leverage"):
        assert result.kept.tolist() == [*range(48), *range(68, 100)]


def test_rounding_across_tiles_is_not_taken_for_saliency():
    x = helpers.states(1, 40).expand(1300, 40)
    assert set(compress(x, QuickMergeConfig(protect_last=1)).scores.tolist()) == {0.5}


def test_auto_without_attention_is_entropy_and_query_says_what_it_needs():
    x = helpers.states(100)
    entropy = compress(x, QuickMergeConfig(saliency="entropy", ratio=0.8))
    assert_same(compress(x, QuickMergeConfig(ratio=0.8)), entropy)
    blind = QuickMergeConfig(ratio=0.8, query_visible=False)
    assert_same(compress(x, blind, attention=helpers.attention(100)), entropy)
    with pytest.raises(ValueError, match="'query' needs attention evidence: pass attention"):
        compress(x, QuickMergeConfig(saliency="query", ratio=0.8))


def test_auto_that_may_not_look_takes_leverage_where_it_is_known():
    x, seen = helpers.states(100), helpers.seen(100)
    for config, chosen in (
        (QuickMergeConfig(ratio=0.8), "query"),
        (QuickMergeConfig(ratio=0.8, query_visible=False), "leverage"),
        (QuickMergeConfig(ratio=0.8, query_visible=False, hint="a word"), "query"),
    ):
        named = QuickMergeConfig(ratio=0.8, saliency=chosen)
        assert_same(compress(x, config, **seen), compress(x, named, **seen))
    alone = compress(x, QuickMergeConfig(ratio=0.8), leverage=seen["leverage"])
    assert_same(alone, compress(x, QuickMergeConfig(ratio=0.8, saliency="leverage"), **seen))


def test_alpha_keeps_the_sharp_tokens():
    x = torch.ones(200, 8) + 0.01 * helpers.states(200, 8)
    x[50] = -x[50]
    x[90] = torch.tensor([1.0, -1.0] * 4)
    config = QuickMergeConfig(alpha=0.45, protect_last=1, protect_first=0)
    result = compress(x, config)
    assert result.num_kept == 2
    assert set(result.kept.tolist()) <= {50, 90, 199}


def test_finish_uses_the_norms_it_is_given():
    x = helpers.states(20)
    kept = torch.tensor([3, 8])
    config = QuickMergeConfig()
    plain = finish(x, Evidence(20), torch.ones(20), kept, config)
    assert_same(plain, finish(x, Evidence(20, norms=row_norms(x)), torch.ones(20), kept, config))
    other = finish(x, Evidence(20, norms=torch.ones(20)), torch.ones(20), kept, config)
    assert other.gamma == pytest.approx(0.1)


X = helpers.states(100)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: compress(torch.ones(0, 3), c), "N, D >= 1"),
        (lambda c: compress(torch.ones(3), c), "states must be"),
        (lambda c: compress(X.masked_fill(X.eq(X[4, 2]), math.nan), c), "states hold NaN"),
        (lambda c: compress(X.masked_fill(X.eq(X[4, 2]), math.inf), c), "states hold NaN or inf"),
        (lambda c: compress(X, c, layer_states=[X * math.nan]), "layer_states hold NaN"),
        (lambda c: compress(X, c, layer_states=[X[1:]]), "layer_states must"),
        (lambda c: compress(X, c, attention=[torch.ones(1, 3, 9)]), "attention must"),
        (lambda c: compress(X, c, leverage=torch.ones(9)), r"leverage must be \[100\]"),
        (lambda c: compress(X, c, leverage=torch.ones(100) / 0), "leverage hold NaN or inf"),
        (lambda c: compress(X, c, token_ids=[1, 2]), "token_ids has 2"),
        (lambda c: compress(X, c, lengths=[100]), "lengths belong to a batch"),
        (lambda c: compress(X[None], c, lengths=[101]), "lengths must be 1"),
        (lambda c: compress(X[None], c, lengths=[0]), "lengths must be 1"),
        (lambda c: compress(X[None], c, lengths=[1, 2]), "lengths must be 1"),
        (lambda c: compress(X, c, layer_states=[]), "needs entropy evidence"),
    ],
)
def test_impossible_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(QuickMergeConfig(ratio=0.8))


@pytest.mark.parametrize("n", [100, 90])
def test_cap_below_the_protected_positions(n):
    config = QuickMergeConfig(max_kept=80, protect_ranges=((0, 60),))
    with pytest.raises(ConfigError, match="max_kept=80 cannot hold"):
        compress(X[:n], config)
