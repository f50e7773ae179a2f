"""The paper's claims: the mathematics of the checks against loops, and every counterexample.

NED, stability and merge risk; the rest is in ``test_paper_claims_bounds.py``.
"""

from __future__ import annotations

import math

import pytest
import torch

from qm_vllm.compress import attention_entropy
from qm_vllm.compress.saliency.ned import DELTA
from qm_vllm_eval.paper.claims import merge_risk, ned, stability, states
from qm_vllm_eval.paper.claims.attention import LETTER, attention, mean, pearson, spearman
from tests.unit import helpers


@pytest.mark.parametrize("scale", [LETTER, 4.0, 24.0])
def test_attention_and_ned_equal_loops(scale):
    rows = helpers.states(9, 5).double().tolist()
    count, width = 9, 5

    def logit(one, two):
        product = math.fsum(a * b for a, b in zip(one, two, strict=True))
        if scale is LETTER:
            return product / math.sqrt(width)
        sizes = [math.sqrt(math.fsum(a * a for a in row)) for row in (one, two)]
        return scale * product / (sizes[0] * sizes[1])

    weights = []
    for one in rows:
        powers = [math.exp(logit(one, two)) for two in rows]
        weights.append([power / math.fsum(powers) for power in powers])
    found = attention(torch.tensor(rows, dtype=torch.float64), scale)
    for i in range(count):
        out = -math.fsum(p * math.log(p) for p in weights[i])
        column = [weights[j][i] for j in range(count)]
        shares = [p / math.fsum(column) for p in column]
        inward = -math.fsum(q * math.log(q) for q in shares)
        assert float(found.outgoing[i]) == pytest.approx(out, rel=1e-9)
        assert float(found.incoming[i]) == pytest.approx(inward, rel=1e-9)
        assert float(found.ned[i]) == pytest.approx((inward - out) / (inward + DELTA), abs=1e-9)
        centre = mean(column)
        spread = math.fsum((p - centre) ** 2 for p in column) / count
        row = math.fsum((p - 1 / count) ** 2 for p in weights[i]) / count
        assert float(ned.lemma_side(found)[i]) == pytest.approx(spread / centre - row, abs=1e-12)


@pytest.mark.parametrize("scale", [LETTER, 24.0])
def test_the_library_without_the_matrix_gives_the_same_entropies(scale):
    x = helpers.states(40, 12).double()
    out, inward = attention_entropy(
        x, scale or 1.0, normalize_rows=scale is not LETTER, incoming=True
    )
    found = attention(x, scale)
    assert torch.allclose(out.double(), found.outgoing, rtol=1e-5)
    assert torch.allclose(inward.double(), found.incoming, rtol=1e-5)


def test_correlations():
    x = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert pearson(x, 3 * x + 1) == pytest.approx(1.0)
    assert spearman(x, -x.exp()) == pytest.approx(-1.0)
    assert pearson(x, torch.ones(4)) == spearman(x, torch.ones(4)) == 0.0


@pytest.mark.parametrize("scale", [LETTER, 2.0, 24.0])
def test_counterexample_lemma_isotropic_points_on_a_circle(scale):
    """NED is 0 everywhere, the lemma's right side is (N - 1) Var(A_i.) > 0."""
    found = attention(ned.circle(12), scale)
    assert float(found.ned.abs().max()) < 1e-9
    expected = 11 * found.weights.var(1, unbiased=False)
    assert torch.allclose(ned.lemma_side(found), expected, rtol=1e-9)
    assert float(ned.lemma_side(found).min()) > 1e-4


def test_near_uniform_attention_has_both_signs_of_the_lemma_turned():
    states = [ned.isotropic(64, 32, seed) for seed in range(3)]
    figures = ned.check_lemma(states, 0.2)
    assert figures.second_order_pearson > 0.99
    found = attention(states[0], 0.02)
    assert torch.allclose(found.ned, ned.second_order(found), rtol=0.05, atol=1e-9)
    assert not figures.holds
    # The column's share of the expansion falls where the lemma's first term rises.
    column = -found.weights.var(0, unbiased=False) / found.weights.mean(0).square()
    first = found.weights.var(0, unbiased=False) / found.weights.mean(0)
    assert spearman(column, first) < -0.99


def test_ned_has_no_lower_limit():
    """A column that one token fills: H_in is 0, and delta is all that is divided by."""
    found = attention(torch.tensor([[0.0], [30.0], [-30.0]]), LETTER)
    assert float(found.ned.min()) < -1e5
    assert float(found.ned.max()) <= 1


@pytest.mark.parametrize("size", [10.0, 1e3, 1e5])
def test_counterexample_stability_a_jump_of_ned_for_a_drift_to_nothing(size):
    before, after = stability.jump(size)
    drift = float((after - before).norm())
    change = float((attention(after, LETTER).ned - attention(before, LETTER).ned).abs()[0])
    coin = 1 / (1 + math.exp(-2.0))
    entropy = -coin * math.log(coin) - (1 - coin) * math.log(1 - coin)
    assert drift == pytest.approx(2 / size)
    assert change == pytest.approx(1 - entropy / math.log(2), abs=0.03)
    assert change / drift > 0.2 * size


def test_counterexample_stability_normalised_rows_near_zero():
    before = torch.tensor([[1.0, 0.0], [1e-6, 0.0], [0.0, 1.0]])
    after = torch.tensor([[1.0, 0.0], [0.0, 1e-6], [0.0, 1.0]])
    change = (attention(after, 4.0).ned - attention(before, 4.0).ned).abs().max()
    assert float((after - before).norm()) < 2e-6
    assert float(change) > 0.01


@pytest.mark.parametrize("scale", [LETTER, 1.0, 24.0])
def test_the_proven_constant_is_never_passed(scale):
    windows = []
    for seed in range(6):
        start = ned.isotropic(20, 8, seed)
        steps = [10.0**-power * ned.isotropic(20, 8, 99 + power) for power in range(4)]
        windows.append([start, *(start + step for step in steps)])
    figures = stability.check_stability(windows, scale)
    assert figures.holds
    assert figures.pairs == 24
    assert 0 < figures.ratio_median <= figures.ratio_highest < figures.constant_lowest * 1e3


@pytest.mark.parametrize("count", [2, 3, 10, 1000])
def test_deviation_of_surprise_is_bounded(count):
    """The distribution of largest variance of log p is one outcome against equal others."""
    best = 0.0
    for step in range(1, 2000):
        share = step / 2000
        gap = math.log((1 - share) * (count - 1) / share)
        best = max(best, share * (1 - share) * gap**2)
    assert math.sqrt(best) <= stability.entropy_deviation(count)
    logs = (8 * torch.randn(200, count, dtype=torch.float64)).log_softmax(1)
    mass = logs.exp()
    spread = (mass * logs.square()).sum(1) - (mass * logs).sum(1).square()
    assert float(spread.max().sqrt()) <= stability.entropy_deviation(count)


@pytest.mark.parametrize("scale", [LETTER, 6.0])
def test_contribution_equals_the_closed_form(scale):
    """Row j moves by A_ji / (1 - A_ji) (Y_j - x_i) when token i is dropped."""
    x = helpers.states(14, 6).double()
    weights = attention(x, scale).weights
    out = weights @ x
    found = merge_risk.contribution(x, scale)
    for i in range(14):
        squares = []
        for j in set(range(14)) - {i}:
            share = float(weights[j, i] / (1 - weights[j, i]))
            squares.append((share * float((out[j] - x[i]).norm() / out[j].norm())) ** 2)
        assert float(found[i]) == pytest.approx(math.sqrt(mean(squares)), rel=1e-8)


def test_leave_one_out_runs_the_layer_without_each_token():
    x = helpers.states(7, 4)

    def layer(states, places):
        assert states.shape[:2] == places.shape
        return states + (states * (1 + places[..., None])).mean(1, keepdim=True)

    found = merge_risk.leave_one_out(layer, x, batch=3)
    places = torch.arange(7)
    full = layer(x[None], places[None])[0]
    for i in range(7):
        rest = places[places != i]
        change = layer(x[rest][None], rest[None])[0] - full[rest]
        relative = change.norm(dim=1) / full[rest].norm(dim=1)
        assert float(found[i]) == pytest.approx(float(relative.square().mean().sqrt()), rel=1e-4)


def test_a_decoders_layer_without_a_token_is_that_token_masked():
    """The others keep their positions, and see each other across the gap."""
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    model = LlamaModel(LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2, initializer_range=0.5,
    )).eval()
    layer, upper = states.decoder_parts(model)
    x, places = helpers.states(7), torch.arange(7)
    with torch.no_grad():
        hidden = model(inputs_embeds=x[None], output_hidden_states=True).hidden_states
        assert torch.allclose(layer(1)(hidden[1], places[None]), hidden[2], atol=1e-5)
        assert torch.allclose(upper(1)(hidden[1][0]), hidden[-1][0], atol=1e-5)
        rest = places[places != 3]
        mask = torch.full((7, 7), -torch.inf).triu(1)
        mask[4:, 3] = -torch.inf
        part = model.layers[0]
        rotary = model.rotary_emb(x[None], places[None])
        masked = part(x[None], attention_mask=mask[None, None], position_embeddings=rotary)
        found = layer(0)(x[rest][None], rest[None])
    assert torch.allclose(found[0], masked[0][rest], atol=1e-5)
    assert len(model.layers) == 3
    assert not isinstance(model.norm, torch.nn.Identity)


def test_risk_bound_is_its_formula():
    found = attention(helpers.states(10, 4), 3.0)
    column = found.weights[:, 4]
    sigma = float(((column - column.mean()) ** 2).mean())
    bound = math.exp(-float(found.ned[4]) ** 2 / (2 * sigma))
    assert float(merge_risk.risk_bound(found)[4]) == pytest.approx(bound, rel=1e-9)


def test_counterexample_merge_risk_an_attention_sink():
    """The bound says 0 for the one token that every output consists of."""
    x = merge_risk.sink(12)
    bound = merge_risk.risk_bound(attention(x, LETTER))
    effect = merge_risk.contribution(x, LETTER)
    assert float(bound[0]) < 1e-6
    assert float(effect[0]) > 0.9
    assert float(effect[1:].max()) < 1e-3


def test_merge_risk_is_vacuous_at_ned_0():
    bound = merge_risk.risk_bound(attention(ned.circle(9), 24.0))
    assert torch.allclose(bound, torch.ones(9, dtype=torch.float64))


def test_merge_risk_bins():
    x = merge_risk.sink(12)
    figures = merge_risk.check_risk([x], [merge_risk.contribution(x, LETTER)], 0.5, LETTER)
    assert not merge_risk.check_risk([x] * 9, [torch.ones(12)] * 9, 0.5, LETTER).holds
    assert figures.tokens == sum(part.tokens for part in figures.bins) == 12
    assert figures.significant == pytest.approx(1 / 12)
    assert figures.first_bound < 1e-6
    assert figures.first_effect > 0.9
    assert figures.other_effect < 1e-3
    quiet = merge_risk.check_risk([x], [torch.zeros(12)], 0.5, LETTER)
    assert quiet.holds
    assert quiet.significant == 0
