"""Each score against its definition, and all of them behind one interface."""

from __future__ import annotations

import pytest
import torch

from qm_vllm import config as configuration
from qm_vllm.compress import (
    SALIENCIES,
    Evidence,
    absolute_saliency,
    average_rank,
    min_max,
    needs,
    score_tokens,
)
from qm_vllm.compress.evidence import KINDS
from qm_vllm.config import QuickMergeConfig
from tests.unit import helpers


def evidence(n: int, seed: int = 0) -> Evidence:
    x = helpers.states(n, seed=seed)
    return Evidence.from_states(
        x, [x, x.roll(1, 1) + 1], logit_scale=24.0, needs=KINDS,
        attention=helpers.attention(n, seed=seed),
    )


def test_registry_equals_the_configured_names():
    assert set(SALIENCIES) == set(configuration.SALIENCIES) - {"auto"}


@pytest.mark.parametrize("n", [1, 2, 5, 39, 41, 200])
@pytest.mark.parametrize("method", helpers.METHODS)
def test_scores_lie_between_0_and_1_and_repeat_exactly(method, n):
    config = QuickMergeConfig(saliency=method)
    scores = score_tokens(evidence(n), config, max(1, n // 3))
    assert scores.shape == (n,)
    assert scores.dtype == torch.float32
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert torch.equal(scores, score_tokens(evidence(n), config, max(1, n // 3)))


@pytest.mark.parametrize("method", helpers.METHODS)
def test_needs_are_enough_and_each_is_necessary(method):
    x = helpers.states(50)
    config = QuickMergeConfig(saliency=method)
    wanted = needs(config)
    assert wanted <= KINDS
    attention = helpers.attention(50) if "attention" in wanted else ()
    exact = Evidence.from_states(x, [x], logit_scale=24.0, needs=wanted, attention=attention)
    score_tokens(exact, config, 10)
    with pytest.raises(ValueError, match=f"{method}.* needs .*pass|fill"):
        score_tokens(Evidence(50), config, 10)


def test_auto_follows_query_visible_and_alpha_adds_entropy():
    assert needs(QuickMergeConfig()) == {"entropy", "attention"}
    assert needs(QuickMergeConfig(query_visible=False)) == {"entropy"}
    assert needs(QuickMergeConfig(saliency="norm", alpha=0.4)) == {"norm", "entropy"}


def test_entropy_rewards_low_entropy_per_layer():
    e = Evidence(3, entropies=[torch.tensor([0.0, 1.0, 2.0]), torch.tensor([4.0, 8.0, 8.0])])
    got = score_tokens(e, QuickMergeConfig(saliency="entropy"), 1)
    assert torch.allclose(got, torch.tensor([1.0, 0.25, 0.0]))
    assert torch.allclose(
        absolute_saliency(Evidence(3, entropies=[torch.zeros(3)])), torch.ones(3)
    )


def test_isolated_token_is_the_most_salient():
    x = torch.randn(8, generator=torch.Generator().manual_seed(0)).expand(30, 8).clone()
    x[7] = -x[7]
    e = Evidence.from_states(x, [x], logit_scale=24.0, needs={"entropy"})
    assert score_tokens(e, QuickMergeConfig(saliency="entropy"), 1).argmax() == 7


def reference_dilated(attention, protect_first, span):
    n = attention[0].shape[1]
    w = [0.0] * n
    for layer in attention:
        mean = layer[-16:].mean(0)
        for i in range(n):
            w[i] += float((mean[i] - mean.min()) / (mean.max() - mean.min()))
    for i in range(n):
        if i < protect_first or i >= n - 40:
            w[i] = 0.0
    d = [max(w[max(0, i - span) : i + 5]) for i in range(n)]
    return average_rank(torch.tensor(d))


@pytest.mark.parametrize(
    ("dilation", "k", "span"), [(64, 400, 64), (64, 80, 20), (64, 10, 16), (8, 400, 8), (0, 9, 0)]
)
def test_dilated_equals_its_definition(dilation, k, span):
    attention = helpers.attention(200)
    config = QuickMergeConfig(saliency="dilated", dilation=dilation)
    got = score_tokens(Evidence(200, attention=attention), config, k)
    assert torch.allclose(got, reference_dilated(attention, 4, span), atol=1e-6)


def test_window_equals_its_definition():
    low, top = helpers.attention(100, window=48)
    mean = top[-32:].mean(0).tolist()
    pooled = torch.tensor([max(mean[max(0, i - 3) : i + 4]) for i in range(100)])
    got = score_tokens(Evidence(100, attention=[low, top]), QuickMergeConfig(saliency="window"), 9)
    assert torch.allclose(got, average_rank(pooled))


def test_fused_is_the_maximum_of_its_parts():
    e = evidence(150)
    parts = {
        name: score_tokens(e, QuickMergeConfig(saliency=name), 30)
        for name in ("entropy", "dilated", "window")
    }
    expected = torch.stack(
        [0.6 * average_rank(parts["entropy"]), parts["dilated"], parts["window"]]
    ).amax(0)
    got = score_tokens(e, QuickMergeConfig(saliency="fused", entropy_weight=0.6), 30)
    assert torch.equal(got, expected)


def test_norm_and_ned():
    e = Evidence(
        3, norms=torch.tensor([1.0, 3.0, 2.0]), entropies=[torch.tensor([1.0, 1.0, 1.0])],
        incoming=[torch.tensor([1.0, 2.0, 4.0])],
    )
    assert score_tokens(e, QuickMergeConfig(saliency="norm"), 1).tolist() == [0.0, 1.0, 0.5]
    expected = 1 - min_max(torch.tensor([0.0, 0.5, 0.75]))
    got = score_tokens(e, QuickMergeConfig(saliency="ned"), 1)
    assert torch.allclose(got, expected, atol=1e-5)
    e.incoming.append(torch.ones(3))
    with pytest.raises(ValueError, match="as many incoming"):
        score_tokens(e, QuickMergeConfig(saliency="ned"), 1)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"needs": {"colour"}}, "colour"),
        ({"layer_states": [torch.ones(4, 2)]}, "layer_states"),
        ({"attention": [torch.ones(2, 4)]}, "attention"),
    ],
)
def test_bad_evidence_is_named(kwargs, words):
    arguments = {"layer_states": [], "needs": set(), "logit_scale": 1.0} | kwargs
    with pytest.raises(ValueError, match=words):
        Evidence.from_states(torch.ones(5, 2), **arguments)
