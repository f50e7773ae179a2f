"""The prior in the model's path: what it does before, while and after it is trained."""

from __future__ import annotations

import itertools

import pytest
import torch

from qm_vllm.prior import PriorConfig
from qm_vllm_eval.methods import METHODS, Request, Unfit
from qm_vllm_eval.methods.in_model_prior import InModelPrior, load
from qm_vllm_eval.prior.train import InModelTrainer
from qm_vllm_eval.reference.decoder import Decoder
from qm_vllm_eval.reference.prefill import Prefill
from tests.engines import random_prompt
from tests.unit.eval.conftest import make_prior
from tests.unit.eval.models import tiny


@pytest.fixture(scope="module")
def prefill():
    with torch.inference_mode():
        return Prefill.run(Decoder(tiny("llama")), random_prompt(300, 1))


def trainer(**changes):
    fields = {"length": 96, "hidden_size": 48, "layers": 1, "learning_rate": 3e-3}
    return InModelTrainer(
        Decoder(tiny("llama")), [random_prompt(900, 5), random_prompt(40, 6)],
        **{**fields, **changes},
    )


def test_an_untrained_corrector_changes_nothing():
    prior = InModelPrior(PriorConfig(input_size=12, hidden_size=16, num_attention_heads=2,
                                     num_key_value_heads=2, num_hidden_layers=1))
    merged = torch.randn(7, 12)
    assert torch.equal(prior.correct(merged), merged)


def test_surprise_is_the_error_of_the_next_state():
    prior = make_prior(12).eval()
    merged = torch.randn(6, 12)
    errors = prior.surprise(merged)
    assert torch.isinf(errors[0])
    for place in range(1, 6):
        guess = prior.next_states(prior(merged[None, :place]).hidden)[0, -1]
        by_hand = (guess - merged[place]).square().mean()
        assert errors[place].item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_saved_and_loaded_with_its_corrector(tmp_path):
    prior = make_prior(12)
    prior.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path).correction.weight, prior.correction.weight)
    with pytest.raises(ValueError, match="no trained prior"):
        load(tmp_path / "nothing")


def test_training_lowers_the_error_of_the_upper_layers():
    made = trainer()
    windows = [made.texts[0][start : start + 96] for start in range(0, 700, 100)]

    def errors():
        found = [made.losses(ids, 0.4) for ids in windows]
        return {name: sum(float(one[name].detach()) for one in found) for name in found[0]}

    first = errors()
    assert first["corrected"] == pytest.approx(first["merged"], rel=1e-5)
    frozen = {n: w.clone() for n, w in made.decoder.model.named_parameters()}
    steps = itertools.count()
    made.run(300.0, clock=lambda: float(next(steps)))  # a step takes a second
    after = errors()
    assert after["merged"] == pytest.approx(first["merged"], rel=1e-5)
    assert after["corrected"] < 0.99 * first["corrected"]
    assert after["predict"] < 0.99 * first["predict"]
    for name, weights in made.decoder.model.named_parameters():
        assert torch.equal(weights, frozen[name])


def test_text_that_is_too_short_is_said():
    with pytest.raises(ValueError, match="more than 5000 tokens"):
        trainer(length=5000)


def test_the_corrector_moves_the_upper_layers_alone(prefill):
    request = Request(prefill, 1, 90)
    plain, corrected = (
        METHODS[name].compress(request) for name in ("quickmerge", "quickmerge-corrected")
    )
    assert plain.kept == corrected.kept
    same = [torch.equal(a, b) for a, b in zip(plain.keys, corrected.keys, strict=True)]
    assert same == [True] * 4 + [False] * 2  # two thirds of six layers are the encoder


def test_the_score_keeps_protected_tokens_and_changes_the_choice(prefill):
    request = Request(prefill, 1, 90, special=(0, 150))
    plain, scored = (
        METHODS[name].compress(request) for name in ("quickmerge", "quickmerge-surprise")
    )
    assert len(scored.kept) == len(plain.kept) == 89
    assert plain.kept != scored.kept
    assert {0, 1, 2, 3, 150, *range(268, 299)} <= set(scored.kept)


def test_a_prior_of_another_width_and_none_at_all_are_unfit(prefill, tmp_path, monkeypatch):
    make_prior(64).save_pretrained(tmp_path)
    monkeypatch.setenv("QM_VLLM_PRIOR", str(tmp_path))
    with pytest.raises(Unfit, match="width 64, the model's have 128"):
        METHODS["quickmerge-corrected"].compress(Request(prefill, 1, 90))
    monkeypatch.setenv("QM_VLLM_PRIOR", str(tmp_path / "none"))
    with pytest.raises(Unfit, match="train_in_model_prior"):
        METHODS["quickmerge-surprise"].compress(Request(prefill, 1, 90))
