"""The prior as a transformers model: shapes, causality, files, refusals."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from qm_vllm.prior import PriorConfig, QuickMergePriorForCausalLM
from tests.unit.prior.conftest import make, shape


def test_defaults_are_the_papers():
    config = PriorConfig()
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (6, 512, 8)


def test_heads_share_one_vocabulary_in_order():
    config = shape()
    assert [list(config.ids(head)) for head in ("tokens", "classes", "time_bins")] == [
        [0, 1, 2, 3, 4], [5, 6, 7], [8, 9, 10, 11],
    ]
    assert config.vocab_size == 12
    assert shape(num_tokens=0, num_classes=0, num_time_bins=0).vocab_size == 1


def test_a_missing_head_is_named():
    with pytest.raises(ValueError, match="no head 'classes'; it has tokens, time_bins"):
        shape(num_classes=0).ids("classes")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_size": 0}, "input_size=0 must be at least 1"),
        ({"num_classes": -1}, "num_classes=-1 must be at least 0"),
        ({"hidden_size": 18, "num_attention_heads": 4}, "hidden_size=18 must be a multiple"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        shape(**changes)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM])
def test_saved_and_loaded_through_the_auto_classes(model, tmp_path, auto):
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    loaded = auto.from_pretrained(tmp_path).eval()
    assert type(loaded) is QuickMergePriorForCausalLM
    assert AutoConfig.from_pretrained(tmp_path).input_size == 6
    states = torch.randn(1, 5, 6)
    assert torch.equal(loaded(states).logits, model(states).logits)
    for (name, one), (other, two) in zip(
        model.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(one, two)


def test_a_position_does_not_see_later_ones(model):
    states = torch.randn(1, 9, 6)
    changed = states.clone()
    changed[:, 5:] += 1
    one, two = model(states).hidden, model(changed).hidden
    assert torch.equal(one[:, :5], two[:, :5])
    assert not torch.allclose(one[:, 5:], two[:, 5:])


def test_padding_on_the_right_changes_nothing(model):
    rows = [torch.randn(size, 6) for size in (1, 4, 9)]
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7.0)
    joined = model(batch).logits
    for row, states in enumerate(rows):
        alone = model(states[None]).logits[0]
        torch.testing.assert_close(joined[row, : len(states)], alone)


def test_ids_follow_states_as_embeddings_do(model):
    states, ids = torch.randn(2, 4, 6), torch.tensor([[1, 2], [3, 11]])
    whole = model(states, input_ids=ids).logits
    joined = torch.cat((model.embed_states(states), model.get_input_embeddings()(ids)), 1)
    torch.testing.assert_close(whole, model(inputs_embeds=joined).logits)
    assert whole.shape == (2, 6, 12)


def test_states_are_standardised_on_the_way_in(model):
    states = torch.randn(1, 5, 6)
    plain = make()
    plain.state_mean.zero_()
    plain.state_std.fill_(1)
    standard = (states - model.state_mean) / model.state_std
    torch.testing.assert_close(model(states).logits, plain(standard).logits)
    torch.testing.assert_close(model.raw(model.standardised(states)), states)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (torch.zeros(1, 3, 7), r"states must be \[B, T, 6\].*trained on tiny.*not \[1, 3, 7\]"),
        (torch.zeros(3, 6), r"not \[3, 6\]"),
        (torch.zeros(1, 0, 6), "hold no position"),
        (torch.zeros(1, 41, 6), "max_position_embeddings=40"),
        (None, "none were given"),
    ],
)
def test_unusable_states_are_named(states, message):
    model = make(max_position_embeddings=40)
    with pytest.raises(ValueError, match=message):
        model(states)
