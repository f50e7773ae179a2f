"""Merged states as prompt embeddings."""

from __future__ import annotations

import base64
import io

import pytest
import torch

from qm_vllm.prior import StatePrompts


@pytest.fixture
def prompts(model, tmp_path):
    model.save_pretrained(tmp_path)
    return StatePrompts.from_pretrained(tmp_path)


def test_embeds_as_the_model_does(model, prompts):
    states = torch.randn(5, 6)
    torch.testing.assert_close(prompts.embed(states), model.embed_states(states))
    assert set(prompts.prompt(states)) == {"prompt_embeds"}


def test_the_encoded_form_is_a_plain_tensor(prompts):
    states = torch.randn(5, 6)
    raw = base64.b64decode(prompts.encoded(states))
    assert torch.equal(torch.load(io.BytesIO(raw), weights_only=True), prompts.embed(states))


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (torch.zeros(3, 7), r"must be \[K >= 1, 6\], not \[3, 7\]"),
        (torch.zeros(0, 6), r"not \[0, 6\]"),
        (torch.zeros(1, 3, 6), r"not \[1, 3, 6\]"),
        (torch.tensor([[0.0] * 6, [float("inf")] * 6]), "first at position 1"),
    ],
)
def test_unusable_states_are_named(prompts, states, message):
    with pytest.raises(ValueError, match=message):
        prompts.embed(states)


def test_a_folder_without_a_prior_is_named(tmp_path):
    with pytest.raises(ValueError, match="not the weights file of a prior"):
        StatePrompts.from_pretrained(tmp_path)
