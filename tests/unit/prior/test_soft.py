"""Stages 1 and 2 with gradients: values as at inference, derivatives as by finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from qm_vllm.compress import Evidence, score_tokens
from qm_vllm.compress.grouping import group_tokens
from qm_vllm.config import QuickMergeConfig
from qm_vllm.prior.loss import l_ar
from qm_vllm.prior.soft import layer_scores, soft_compress, temperature_at
from tests.unit.prior.conftest import make

CONFIG = QuickMergeConfig(logit_scale=math.sqrt(6), saliency="entropy", query_visible=False)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def states(count=12, seed=0):
    return torch.randn(count, 6, dtype=torch.float64, generator=seeded(seed))


def test_scores_are_those_of_inference():
    layers = [states(40, seed) for seed in range(3)]
    evidence = Evidence.from_states(
        layers[-1], layers, logit_scale=CONFIG.logit_scale, needs={"entropy"}
    )
    mine = torch.stack([layer_scores(layer, CONFIG.logit_scale) for layer in layers]).mean(0)
    torch.testing.assert_close(mine.float(), score_tokens(evidence, CONFIG), atol=1e-5, rtol=0)


def test_equal_tokens_have_no_preference():
    assert layer_scores(torch.ones(5, 6), 2.0).tolist() == [0.5] * 5


@pytest.mark.parametrize("k", [1, 5, 12])
def test_merged_states_are_the_papers_weighted_means(k):
    x = states()
    soft = soft_compress(x, [x], k, CONFIG, temperature=0.5, generator=seeded(4))
    assert soft.states.shape == (k, 6)
    assert soft.kept.tolist() == sorted(soft.kept.tolist())
    groups = group_tokens(x, soft.kept, CONFIG)
    for row in range(k):
        inside = (groups == row).nonzero()[:, 0].tolist()
        mass = [
            float(soft.mask[i] * max(soft.scores[i], CONFIG.epsilon)
                  + (1 - soft.mask[i]) * CONFIG.epsilon)
            for i in inside
        ]
        mean = sum(m * x[i] for m, i in zip(mass, inside, strict=True)) / sum(mass)
        torch.testing.assert_close(soft.states[row], mean)


def test_cold_noise_free_selection_is_the_top_k():
    x = states(30)
    scores = layer_scores(x, CONFIG.logit_scale)
    drawn = [
        soft_compress(x, [x], 10, CONFIG, temperature=1e-3, generator=seeded(s))
        for s in range(40)
    ]
    often = torch.zeros(30)
    for soft in drawn:
        often[soft.kept] += 1
    assert often[scores.argsort(descending=True)[:10]].mean() > often[scores.argsort()[:10]].mean()


def through_everything(x, weights, model):
    """Saliency, Gumbel mass, merge, prior: the loss of one sequence."""
    soft = soft_compress(
        x, [x * 1.5, x + 0.3], 5, CONFIG, temperature=0.7, layer_weights=weights,
        generator=seeded(9),
    )
    return l_ar(model, soft.states[None], torch.tensor([5])).total


def test_gradients_through_saliency_mass_merge_and_prior():
    model = make().double()
    x = states().requires_grad_()
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b: through_everything(a, b, model), (x, weights), eps=1e-6, atol=1e-7
    )
    through_everything(x, weights, model).backward()
    assert (x.grad.abs().sum(1) > 0).all()
    assert (weights.grad.abs() > 0).all()


def test_gradients_reach_every_weight_of_the_prior_exactly():
    model = make().double()
    x, weights = states(), torch.tensor([0.5, 0.5], dtype=torch.float64)
    through_everything(x, weights, model).backward()
    chooser = seeded(2)
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert name in ("lm_head.weight", "forward_stack.model.embed_tokens.weight"), name
            continue
        place = int(torch.randint(parameter.numel(), (1,), generator=chooser))
        flat = parameter.data.view(-1)
        before, values = float(flat[place]), []
        with torch.no_grad():
            for step in (1e-5, -1e-5):
                flat[place] = before + step
                values.append(float(through_everything(x, weights, model)))
            flat[place] = before
        slope = (values[0] - values[1]) / 2e-5
        assert float(parameter.grad.view(-1)[place]) == pytest.approx(
            slope, rel=1e-5, abs=1e-8
        ), name


def test_without_noise_of_its_own_the_merge_repeats():
    x = states()
    one, two = (soft_compress(x, [x], 4, CONFIG, temperature=1, generator=seeded(1))
                for _ in range(2))
    assert torch.equal(one.states, two.states)


def test_temperature_falls_geometrically():
    assert temperature_at(0.0) == pytest.approx(1.0)
    assert temperature_at(0.5) == pytest.approx(math.sqrt(0.1))
    assert temperature_at(1.0) == temperature_at(7.0) == pytest.approx(0.1)
