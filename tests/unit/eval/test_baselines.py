"""What must hold for every method of Tables 1 and 2."""

from __future__ import annotations

import pytest
import torch

from qm_vllm_eval.baselines import (
    ABLATIONS,
    CONTROLS,
    METHODS,
    PAPER_RATES,
    TABLE_1,
    Method,
    Spec,
    Tokens,
)
from tests.unit.eval.baseline_sources import make_source, noise, rows

SPEC = Spec(width=12, num_tokens=23, max_bytes=61, alpha=0.6)
EVERY = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def check(method: Method, tokens: Tokens, batch: int) -> None:
    assert tokens.states.dtype == torch.float32
    assert tokens.states.shape == (batch, tokens.states.shape[1], method.width)
    assert tokens.lengths.shape == (batch,)
    assert tokens.lengths.dtype == torch.int64
    assert tokens.lengths.min() >= 1
    assert tokens.lengths.max() <= tokens.states.shape[1]
    assert tokens.loss.shape == ()
    assert torch.isfinite(tokens.loss)
    assert torch.isfinite(tokens.states).all()
    outside = torch.arange(tokens.states.shape[1]) >= tokens.lengths[:, None]
    assert (tokens.states[outside] == 0).all()


@EVERY
@pytest.mark.parametrize("count", [1, 2, 23])
@pytest.mark.parametrize("training", [False, True])
def test_tokens_are_well_formed(name: str, count: int, training: bool) -> None:
    method = METHODS[name](SPEC).train(training)
    assert method.name == name
    for batch in (1, 5):
        source = make_source(batch, count)
        assert source.raw_lengths[0] == 1
        check(method, method(source, noise() if training else None), batch)


@EVERY
def test_inference_is_deterministic_and_changes_nothing(name: str) -> None:
    method, source = METHODS[name](SPEC), make_source()
    method.train()(source, noise())
    before = {key: value.clone() for key, value in method.state_dict().items()}
    for training in (True, False):
        method.train(training)
        first, second = method(source), method(source)
        assert torch.equal(first.states, second.states)
        assert torch.equal(first.lengths, second.lengths)
    method.eval()(source, noise())
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


@EVERY
def test_equal_seeds_make_equal_tokens(name: str) -> None:
    source = make_source()
    method = METHODS[name](SPEC).eval()
    one, two = method(source, noise(3)), method(source, noise(3))
    assert torch.equal(one.states, two.states)


@EVERY
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    method, source = METHODS[name](SPEC), make_source()
    method.train()(source, noise())
    together = method.eval()(source)
    for row in range(5):
        alone = method(rows(source, row, row + 1))
        length = int(alone.lengths)
        assert together.lengths[row] == length
        torch.testing.assert_close(
            together.states[row, :length], alone.states[0, :length], rtol=1e-4, atol=1e-5
        )


@EVERY
def test_gradients_reach_every_parameter(name: str) -> None:
    method = METHODS[name](SPEC).train()
    source = make_source()
    method(source, noise())
    tokens = method(source, noise(1))
    if not list(method.parameters()):
        assert not tokens.states.requires_grad
        return
    (tokens.states.square().sum() + tokens.loss).backward()
    for key, parameter in method.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().sum() > 0, key


@EVERY
def test_moves_and_saves_like_any_module(name: str) -> None:
    method, source = METHODS[name](SPEC), make_source()
    method.train()(source, noise())
    torch.manual_seed(9)
    other = METHODS[name](SPEC)
    other.load_state_dict(method.state_dict())
    assert torch.equal(method.eval()(source).states, other.eval()(source).states)


def test_methods_stand_in_the_papers_order_with_its_rates() -> None:
    assert tuple(PAPER_RATES) == TABLE_1
    assert tuple(METHODS) == TABLE_1 + CONTROLS + ABLATIONS
    source = make_source(8, 128)
    spec = Spec(12, 128, 61, alpha=0.6)
    rates = {
        name: 128 / METHODS[name](spec)(source).lengths.float().mean().item()
        for name in METHODS
    }
    assert rates["Fixed Patches"] == 1
    assert rates["TokenLearner"] == pytest.approx(1.83, rel=0.01)
    assert rates["- entropy budget"] == 128 / 55  # ceil(128 / 2.37)
    assert rates["fixed patches at 2.37x"] == 128 / 55
    assert rates["random tokens at 2.37x"] == rates["QuickMerge++"] == rates["- AR prior"]
    assert rates["no context"] == 128


def test_the_papers_method_two_ablations_and_a_control_align_the_decoder() -> None:
    aligned = [name for name in METHODS if METHODS[name](SPEC).aligned]
    assert aligned == [
        "QuickMerge++", "random tokens, AR prior", "- entropy budget", "- norm masking"
    ]
