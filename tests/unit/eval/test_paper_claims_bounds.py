"""The paper's claims: bounds, complexity, saliency, budget, L_AR and the tables' arithmetic."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from qm_vllm.compress import (
    Evidence,
    absolute_saliency,
    gamma,
    score_tokens,
    zero_padded_error,
)
from qm_vllm.config import QuickMergeConfig
from qm_vllm_eval.paper.claims import (
    bounds,
    budget,
    complexity,
    lipschitz,
    prior_loss,
    run,
    saliency,
    tables,
)
from tests.unit import helpers


def test_first_line_equals_loops_and_is_an_equality_for_unit_masses():
    x = helpers.states(12).double()
    groups = torch.arange(12) // 4
    merged = torch.stack([x[groups == k].mean(0) for k in range(3)])
    masses = torch.rand(12, generator=torch.Generator().manual_seed(3))
    left = right = 0.0
    for j in range(12):
        error = float((x[j] - merged[groups[j]]).square().sum())
        left += error
        right += float(masses[j]) * error
    assert bounds.first_line(x, merged, groups, masses) == pytest.approx(left / right)
    assert bounds.first_line(x, merged, groups, torch.ones(12)) == pytest.approx(1.0)
    assert bounds.first_line(x, x, torch.arange(12), masses) == 1.0


def test_counterexample_first_line_with_masses_below_one():
    """Two tokens 1 and -1 merged to 0 with masses 0.1: 2 <= 0.2 is false."""
    x = torch.tensor([[1.0], [-1.0]])
    groups, masses = torch.zeros(2, dtype=torch.long), torch.full((2,), 0.1)
    assert bounds.first_line(x, torch.zeros(1, 1), groups, masses) == pytest.approx(10.0)


def test_first_line_figures():
    figures = bounds.check_first_line([helpers.states(40, seed=seed) for seed in range(2)])
    assert figures.holds_with_unit_masses
    assert not figures.holds
    assert figures.paper_masses > 1
    assert figures.unit_masses == pytest.approx(1.0)


def test_counterexample_gamma_equal_norms():
    """Ten orthonormal rows, four kept: the error is 0.6, the paper's bound 0.36."""
    error = zero_padded_error(torch.eye(10), torch.arange(4)) ** 2
    share = gamma(torch.ones(10), 4)
    assert error == pytest.approx(1 - share)
    assert error > (1 - share) ** 2


def test_counterexample_gamma_knows_no_groups():
    """1 and -1 in one group that keeps 1: the error is twice |X|^2, whatever gamma."""
    x = torch.tensor([[1.0], [-1.0]])
    error = (x - x[torch.tensor([0, 0])]).square().sum() / x.square().sum()
    assert float(error) == pytest.approx(2.0)
    assert 1 - gamma(x.norm(dim=1), 1) == pytest.approx(0.5)


@pytest.mark.parametrize("ratio", [1.2, 2.4, 8.0])
def test_what_holds_of_the_gamma_bound(ratio):
    windows = [
        helpers.states(30, seed=seed) * torch.rand(30, 1) ** (seed % 4) for seed in range(8)
    ]
    figures = bounds.check_gamma(windows, ratio)
    assert figures.first_power_holds
    assert figures.triangle_holds
    assert not figures.holds
    assert set(figures.filled) == set(bounds.MERGES)


def test_one_token_kept_by_an_exact_merge_breaks_nothing():
    figures = bounds.check_gamma([torch.ones(6, 3)], 6.0)
    assert figures.filled["mean"] == pytest.approx(0.0)
    assert figures.zero_padded == pytest.approx(5 / 6)


def test_lipschitz_of_a_linear_map_is_measured():
    windows = [helpers.states(40, seed=seed) for seed in range(2)]
    figures = lipschitz.check_lipschitz(lambda z: 3 * z, windows)
    assert figures.merged_highest == pytest.approx(3, rel=1e-4)
    assert figures.noise_highest == pytest.approx(3, rel=1e-3)
    assert figures.spread == pytest.approx(1, abs=1e-3)
    assert figures.pairs == 8


@pytest.mark.parametrize("size", [0.0, 1.0, 10.0, 1000.0])
def test_counterexample_lipschitz_the_slope_of_attention_grows_without_limit(size):
    expected = 2 * size**2 / 3 + 1 / 3
    assert lipschitz.attention_slope(size) == pytest.approx(expected, rel=1e-9)


def test_flops_are_the_sums_they_say():
    assert complexity.attention_products(10, 4) == 10 * 10 * 4 * 2 * 2
    one = complexity.layer_products(10, 4)
    assert one == 10 * (4 * 4 * 4 * 2) + 1600 + 10 * (4 * 16 * 2 * 2)
    figures = complexity.count_flops(1024, 427)
    assert figures.attention_speedup == pytest.approx((1024 / 427) ** 2)
    assert 1024 / 427 < figures.layer_speedup < figures.attention_speedup
    assert not figures.holds  # eq. 1 is itself N^2 D in every encoder layer


def test_score_operations_are_quadratic():
    twice = complexity.saliency_products(2048, 8) / complexity.saliency_products(1024, 8)
    assert twice == 4
    assert complexity.merge_products(2048, 8) == 2 * complexity.merge_products(1024, 8)


def test_slope_of_powers():
    assert complexity.slope([1, 2, 4], [5, 20, 80]) == pytest.approx(2.0)


def test_growth_is_timed():
    figures = complexity.time_growth((32, 64), width=64, repeats=1)
    assert figures.sizes == (32, 64)
    assert min(figures.saliency_ms, figures.merge_ms, figures.attention_ms) > 0


def test_formula_and_text_keep_disjoint_tokens():
    windows = [[helpers.states(48, seed=seed), helpers.states(48, seed=seed + 9)]
               for seed in range(2)]
    effects = [(windows[0][0], torch.rand(48))]
    figures = saliency.check_sign(windows, effects)
    assert figures.overlap == 0.0  # K is below N / 2
    assert not figures.holds


def test_norm_figures_are_rank_correlations():
    x = torch.diag(torch.arange(1.0, 9.0))
    same = saliency.check_norm([(x, torch.arange(8.0))], [(x, torch.arange(8.0))])
    assert same.effect == pytest.approx(1.0)
    assert same.surprisal == pytest.approx(1.0)
    assert same.holds
    turned = saliency.check_norm([(x, -torch.arange(8.0))])
    assert turned.effect == pytest.approx(-1.0)
    assert turned.surprisal is None
    assert not turned.holds


def test_gumbel_noise_swamps_scores_in_0_1():
    scores = [torch.linspace(0, 1, 128)]
    figures = saliency.check_gumbel(scores)
    assert figures.chance < figures.overlap < 0.8
    assert not figures.repeatable
    assert not figures.holds
    weights = [math.exp(i / 127) for i in range(128)]
    assert figures.best_first == pytest.approx(math.e / math.fsum(weights))
    assert figures.mass_of_one_draw == pytest.approx(1.0)  # eq. 4 draws one token, not K


def test_probability_of_the_best_by_drawing():
    score, generator = torch.tensor([0.0, 0.5, 1.0]), torch.Generator().manual_seed(0)
    hits = sum(
        int(saliency.one_draw(score, 0.3, generator).argmax()) == 2 for _ in range(4000)
    )
    assert hits / 4000 == pytest.approx(saliency.best_first(score), abs=0.03)


def test_alpha_shares():
    equal = [torch.ones(20, 4)]
    assert budget.kept_shares(equal) == {"absolute": 0.05, "min-max": 1.0, "formula": 1.0}
    apart = [torch.eye(20)]
    assert budget.kept_shares(apart)["absolute"] == 1.0
    figures = budget.check_budget({"equal": [equal], "apart": [apart]})
    assert figures.rises["absolute"]
    assert not figures.falls["absolute"]


def test_absolute_and_min_max_are_the_librarys():
    layers = [helpers.states(30, seed=seed) for seed in range(3)]
    evidence = Evidence.from_states(
        layers[0], layers, logit_scale=24.0, needs=frozenset({"entropy"})
    )
    relative = score_tokens(evidence, QuickMergeConfig(saliency="entropy"))
    expected = {
        "absolute": float((absolute_saliency(evidence) >= 0.9).sum()),
        "min-max": float((relative >= 0.9).sum()),
    }
    found = budget.kept_shares(layers, 0.9)
    assert {name: found[name] * 30 for name in expected} == pytest.approx(
        {name: max(1.0, share) for name, share in expected.items()}
    )
    assert set(budget.kept_shares(layers, 0.45, None)) == set(budget.READINGS)


def test_order_of_groups():
    assert budget.interleaved(torch.tensor([0, 0, 1, 1, 2])) == 0.0
    assert budget.interleaved(torch.tensor([0, 1, 0, 1, 2])) == 1.0
    assert budget.interleaved(torch.tensor([0, 1, 0, 2, 2])) == 0.5
    figures = budget.check_order([helpers.states(60)])
    assert figures.holds
    assert figures.interleaved > 0.1


@pytest.fixture
def without_vllm(monkeypatch):
    """Importing vLLM takes seconds; the transformers class says the same."""
    monkeypatch.setitem(sys.modules, "qm_vllm_patches.served_prior", None)


@pytest.mark.usefixtures("without_vllm")
def test_the_backward_decoder_never_moves_the_forward_one():
    figures = prior_loss.check_prior_loss(helpers.states(10, 6))
    assert figures.forward_gradient > 0
    assert figures.backward_gradient == 0.0
    assert not figures.backward_helps


@pytest.mark.usefixtures("without_vllm")
def test_counterexample_l_ar_a_constant_sequence_costs_nothing():
    figures = prior_loss.check_prior_loss(helpers.states(10, 6))
    assert figures.constant_loss == 0.0
    assert not figures.retains


@pytest.mark.usefixtures("without_vllm")
def test_only_the_forward_decoder_is_read():
    assert prior_loss.check_prior_loss(helpers.states(10, 6)).only_forward_served


def test_sums_of_the_papers_tables():
    found = {entry.what.split(":")[0]: entry for entry in tables.check_tables()}
    baseline = found["Table 3, KV of the baseline in MB"]
    assert baseline.computed == pytest.approx(2 * 6 * 512 * 128 * 32 * 2 / 1e6)
    assert baseline.computed == pytest.approx(50.3, abs=0.05)
    assert not baseline.agrees
    assert found["Table 3, change of KV in %, 1120 to 412"].agrees
    assert not found[
        "Table 3, change of KV in %, as the tokens say (KV is proportional to tokens)"
    ].agrees
    assert not found["1, 'up to 3x'"].agrees
    late = found["Table 3, change of latency in %, if the 1.6 ms come on top"]
    assert late.computed == pytest.approx(-9.5, abs=0.05)


def test_figures_become_json():
    plain = run._plain({
        "a": tables.check_tables()[0], "b": math.inf, "c": (1, 2.123456789), "d": None,
    })
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["b"] == "inf"
    assert plain["c"] == [1, 2.12346]
