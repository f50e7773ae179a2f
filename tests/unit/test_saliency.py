"""Each score against its definition, and all of them behind one interface."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from qm_vllm import config as configuration
from qm_vllm.compress import (
    SALIENCIES,
    Evidence,
    QueryAttention,
    absolute_saliency,
    average_rank,
    min_max,
    needs,
    score_tokens,
)
from qm_vllm.compress.evidence import KINDS
from qm_vllm.compress.normalize import shared_rank
from qm_vllm.compress.saliency import query
from qm_vllm.config import QuickMergeConfig
from tests.unit import helpers


def evidence(n: int, seed: int = 0) -> Evidence:
    x = helpers.states(n, seed=seed)
    return Evidence.from_states(
        x, [x, x.roll(1, 1) + 1], logit_scale=24.0, needs=KINDS,
        **helpers.seen(n, seed=seed),
    )


def test_registry_equals_the_configured_names():
    assert set(SALIENCIES) == set(configuration.SALIENCIES) - {"auto"}
    assert all(name == one.name for name, one in SALIENCIES.items())


class Watched:
    """A configuration that remembers which of its fields were read."""

    def __init__(self, config: QuickMergeConfig) -> None:
        self.config, self.read = config, set()

    def __getattr__(self, name):
        self.read.add(name)
        return getattr(self.config, name)


@pytest.mark.parametrize("method", helpers.METHODS)
def test_a_score_declares_the_options_and_the_evidence_that_it_reads(method):
    one = SALIENCIES[method]
    fields = {field.name for field in dataclasses.fields(QuickMergeConfig)}
    assert one.options <= fields
    assert one.needs <= KINDS
    config = Watched(QuickMergeConfig(saliency=method))
    scores = one.score(evidence(80), config)
    assert config.read <= one.options
    assert torch.equal(scores, score_tokens(evidence(80), config.config))


@pytest.mark.parametrize("n", [1, 2, 5, 39, 41, 200])
@pytest.mark.parametrize("method", helpers.METHODS)
def test_scores_lie_between_0_and_1_and_repeat_exactly(method, n):
    config = QuickMergeConfig(saliency=method)
    scores = score_tokens(evidence(n), config)
    assert scores.shape == (n,)
    assert scores.dtype == torch.float32
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert torch.equal(scores, score_tokens(evidence(n), config))


@pytest.mark.parametrize("method", helpers.METHODS)
def test_needs_are_enough_and_each_is_necessary(method):
    x = helpers.states(50)
    config = QuickMergeConfig(saliency=method)
    wanted = needs(config)
    assert wanted <= KINDS
    seen = {kind: value for kind, value in helpers.seen(50).items() if kind in wanted}
    exact = Evidence.from_states(x, [x], logit_scale=24.0, needs=wanted, **seen)
    score_tokens(exact, config)
    with pytest.raises(ValueError, match=f"{method}.* needs .*pass|fill"):
        score_tokens(Evidence(50), config)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("method", helpers.METHODS)
def test_a_score_of_evidence_that_is_not_finite_is_not_finite(method, bad):
    """So that whoever reads the scores sees it: a rank of NaN would look like any other."""
    x, seen = helpers.states(100), helpers.seen(100)
    x[50] = seen["attention"][0][:, :, 50] = seen["leverage"][50] = bad
    broken = Evidence.from_states(x, [x], logit_scale=24.0, needs=KINDS, **seen)
    scores = score_tokens(broken, QuickMergeConfig(saliency=method, protect_last=8))
    assert not bool(torch.isfinite(scores).all())


def test_auto_follows_query_visible_and_alpha_adds_entropy():
    assert needs(QuickMergeConfig()) == {"attention"}
    assert needs(QuickMergeConfig(query_visible=False)) == {"entropy"}
    assert needs(QuickMergeConfig(query_visible=False, delivery="native")) == {"leverage"}
    assert needs(QuickMergeConfig(query_visible=False, delivery="native", hint="x")) == {
        "attention"
    }
    assert needs(QuickMergeConfig(saliency="norm", alpha=0.4)) == {"norm", "entropy"}


def test_entropy_rewards_low_entropy_per_layer():
    e = Evidence(3, entropies=[torch.tensor([0.0, 1.0, 2.0]), torch.tensor([4.0, 8.0, 8.0])])
    got = score_tokens(e, QuickMergeConfig(saliency="entropy"))
    assert torch.allclose(got, torch.tensor([1.0, 0.25, 0.0]))
    assert torch.allclose(
        absolute_saliency(Evidence(3, entropies=[torch.zeros(3)])), torch.ones(3)
    )


def test_isolated_token_is_the_most_salient():
    x = torch.randn(8, generator=torch.Generator().manual_seed(0)).expand(30, 8).clone()
    x[7] = -x[7]
    e = Evidence.from_states(x, [x], logit_scale=24.0, needs={"entropy"})
    assert score_tokens(e, QuickMergeConfig(saliency="entropy")).argmax() == 7


def reference_spread(values, ahead, behind):
    n = len(values)
    return [
        max(
            math.log(max(values[j], 1e-9)) - ((i - j) / ahead if i >= j else (j - i) / behind)
            for j in range(n)
        )
        for i in range(n)
    ]


def test_query_equals_its_definition():
    n, layers = 90, helpers.attention(90)
    heads = torch.cat(layers).double()
    recent = heads[:, -8:].mean(1)
    age = torch.exp(-torch.arange(31, -1, -1, dtype=torch.float64) / 24)
    views = (
        (recent.amax(0), 64, 0.2),
        ((heads * age[None, :, None]).amax((0, 1)), 8, 0.5),
        (recent.square().sum(0).sqrt(), 2, 0.3),
    )
    places = []
    for view, ahead, share in views:
        view[:4] = view[-20:] = 0
        spread = torch.tensor(reference_spread(view.tolist(), ahead, 2), dtype=torch.float64)
        places.append((1 - average_rank(spread).double()) * (n - 1) / share)
    expected = average_rank(-torch.stack(places).amin(0).round(decimals=3))
    e = Evidence(n, attention=[QueryAttention.of(layer) for layer in layers])
    got = score_tokens(e, QuickMergeConfig(saliency="query", protect_last=20))
    # The views are float32: a pair of near-equal tokens may change places.
    assert (got - expected).abs().max() <= 1.5 / (n - 1)


def test_a_strong_peak_takes_more_of_what_follows():
    weights = torch.zeros(100)
    weights[20], weights[60] = 0.5, 0.01
    order = query.reach(weights, 8, 2).argsort(descending=True).tolist()
    assert order[0] == 20
    # ln(0.5 / 0.01) is 3.9 lengths: 31 tokens forward, and 7 backward, before the weak one's turn.
    before = order[: order.index(60)]
    assert sorted(before) == list(range(13, 52))
    assert torch.isfinite(query.reach(torch.zeros(5), 8, 2)).all()


def test_one_looking_head_is_not_drowned_by_the_others():
    weights = torch.full((8, 16, 200), 1 / 200)
    weights[5, :, 77] = 0.5
    e = Evidence(200, attention=[QueryAttention.of(weights)])
    scores = score_tokens(e, QuickMergeConfig(saliency="query"))
    assert scores.argmax() == 77


def test_shares_of_any_budget():
    n = 1000
    first, second = torch.arange(n).float(), -torch.arange(n).float()
    score = shared_rank([(first, 0.75), (second, 0.25)])
    for k in (8, 100, 400):
        kept = score.topk(k).indices
        assert (kept >= n // 2).sum() == pytest.approx(0.75 * k, abs=1)
    assert torch.equal(shared_rank([(first, 0.3)]), average_rank(first))


def test_heads_of_ranks_join_to_the_same_attention():
    (weights,) = helpers.attention(60, layers=1)
    whole = QueryAttention.of(weights)
    split = QueryAttention.joined([QueryAttention.of(weights[:1]), QueryAttention.of(weights[1:])])
    for name in ("recent", "question", "energy"):
        torch.testing.assert_close(getattr(split, name), getattr(whole, name))
    with pytest.raises(ValueError, match=r"\[H, W, N\]"):
        QueryAttention.of(weights[0])


def test_norm_and_ned():
    e = Evidence(
        3, norms=torch.tensor([1.0, 3.0, 2.0]), entropies=[torch.tensor([1.0, 1.0, 1.0])],
        incoming=[torch.tensor([1.0, 2.0, 4.0])],
    )
    assert score_tokens(e, QuickMergeConfig(saliency="norm")).tolist() == [0.0, 1.0, 0.5]
    expected = 1 - min_max(torch.tensor([0.0, 0.5, 0.75]))
    got = score_tokens(e, QuickMergeConfig(saliency="ned"))
    assert torch.allclose(got, expected, atol=1e-5)
    e.incoming.append(torch.ones(3))
    with pytest.raises(ValueError, match="as many incoming"):
        score_tokens(e, QuickMergeConfig(saliency="ned"))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"needs": {"colour"}}, "colour"),
        ({"layer_states": [torch.ones(4, 2)]}, "layer_states"),
        ({"attention": [torch.ones(1, 2, 4)]}, "attention"),
        ({"leverage": torch.ones(4)}, "leverage"),
    ],
)
def test_bad_evidence_is_named(kwargs, words):
    arguments = {"layer_states": [], "needs": set(), "logit_scale": 1.0} | kwargs
    with pytest.raises(ValueError, match=words):
        Evidence.from_states(torch.ones(5, 2), **arguments)
