"""Text encoders against plain transformers: all layers, windows, overlap, bad input."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch
from torch import nn

from qm_vllm.encoders import EncoderError
from qm_vllm.encoders.base import join
from qm_vllm.encoders.text import TextEncoder
from tests.unit.encoders import tiny

KINDS = ("bert", "roberta", "t5", "bart", "llama")


def encoder(kind: str = "bert", template: str = "[CLS] $A [SEP]", **changes) -> TextEncoder:
    return TextEncoder(tiny.model(kind, **changes), tiny.tokenizer(template), name=f"tiny {kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_short_text_has_the_states_of_plain_transformers_in_all_layers(kind):
    tokens = tiny.tokenizer()(tiny.text(9), return_tensors="pt")
    window = encoder(kind).encode(tiny.text(9))
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    tiny.assert_layers(window, tiny.reference(tiny.model(kind), input_ids=ids, attention_mask=mask))
    assert window.token_ids.tolist() == ids[0].tolist()
    assert window.special.tolist() == [True] + [False] * 9 + [True]
    assert window.start == 0
    assert window.states is window.layers[-1]
    assert len(window.layers) == encoder(kind).num_layers + 1
    assert window.states.shape == (11, encoder(kind).hidden_size)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_give_each_token_once_in_order_with_the_states_of_its_window(kind):
    subject, plain = encoder(kind), tiny.model(kind)
    ids = tiny.tokenizer()(tiny.text(50), verbose=False)["input_ids"]
    windows = list(subject.stream(tiny.text(50), window=12))
    assert [w.start for w in windows] == [0, 11, 21, 31, 41]
    assert join(windows).token_ids.tolist() == ids
    assert join(windows).special.nonzero().flatten().tolist() == [0, 51]
    for at, window in enumerate(windows):
        inner = ids[1:-1][10 * at : 10 * at + 10]
        expected = tiny.reference(plain, input_ids=torch.tensor([[ids[0], *inner, ids[-1]]]))
        tiny.assert_layers(window, expected, slice(at > 0, None if at == 4 else 11))


@pytest.mark.parametrize("tokens", [1, 3, 10, 11, 12, 29, 50])
@pytest.mark.parametrize("overlap", [1, 3, 4])
def test_overlap_is_read_on_both_sides_and_dropped(tokens, overlap):
    subject, plain = encoder(), tiny.model("bert")
    ids = tiny.tokenizer()(tiny.text(tokens), verbose=False)["input_ids"]
    inner, begin = ids[1:-1], 0
    windows = list(subject.stream(tiny.text(tokens), window=12, overlap=overlap))
    assert join(windows).token_ids.tolist() == ids
    for window in windows:
        low = max(0, begin - overlap)
        high = min(tokens, low + 10)
        context = torch.tensor([[ids[0], *inner[low:high], ids[-1]]])
        own = int((~window.special).sum())
        first = 1 + begin - low - (begin == 0)
        keep = slice(first, first + len(window))
        tiny.assert_layers(window, tiny.reference(plain, input_ids=context), keep)
        begin += own
        if begin < tokens:  # every token but those at the ends has its context
            assert high - begin == overlap
    assert begin == tokens


def test_token_ids_as_source_are_the_text_without_special_tokens():
    ids = tiny.tokenizer()(tiny.text(30), add_special_tokens=False, verbose=False)["input_ids"]
    subject = encoder()
    of_text = subject.encode(tiny.text(30))
    for source in (ids, tuple(ids), torch.tensor(ids), torch.tensor(ids, dtype=torch.int32)):
        joined = subject.encode(source)
        assert torch.equal(joined.token_ids, of_text.token_ids)
        assert torch.equal(joined.states, of_text.states)


@pytest.mark.parametrize(
    ("template", "marks"), [("$A", []), ("[CLS] $A", [0]), ("$A [SEP]", [21])]
)
def test_special_tokens_are_those_that_the_tokenizer_adds(template, marks):
    joined = encoder("llama", template).encode(tiny.text(21 - ("CLS" in template)))
    assert joined.special.nonzero().flatten().tolist() == marks
    whole = tiny.tokenizer(template)(tiny.text(21 - ("CLS" in template)), verbose=False)
    assert joined.token_ids.tolist() == whole["input_ids"]


@pytest.mark.parametrize(
    ("kind", "changes", "limit", "chosen"),
    [
        ("bert", {}, 24, 16),
        ("bert", {"max_position_embeddings": 10}, 10, 10),
        ("roberta", {}, 19, 16),  # 20 rows, of which the padding id takes the first
        ("roberta", {"pad_token_id": 1}, 18, 16),
        ("bart", {}, 24, 16),
        ("t5", {}, None, 16),
    ],
)
def test_windows_fit_the_positions_of_the_model(kind, changes, limit, chosen):
    subject = encoder(kind, **changes)
    assert subject.max_window == limit
    assert subject.default_window == chosen
    if limit is None:
        assert len(list(subject.stream(tiny.text(60), window=62))) == 1
        return
    assert subject.encode(tiny.text(60)).states.isfinite().all()
    full = list(subject.stream(tiny.text(60), window=limit))
    assert len(full[0]) == limit - 1  # the trailing special token comes with the last window
    with pytest.raises(EncoderError, match=rf"window of {limit + 1} .* {limit} positions"):
        subject.stream(tiny.text(60), window=limit + 1)


def test_decoder_only_states_do_not_see_later_tokens():
    subject = encoder("llama", "$A")
    short, long = subject.encode(tiny.text(5)), subject.encode(tiny.text(10))
    torch.testing.assert_close(long.states[:5], short.states, atol=1e-5, rtol=1e-5)
    assert subject.model.config.use_cache is False


def test_encoder_is_frozen_and_its_states_can_be_trained_on():
    subject = TextEncoder(tiny.model("bert").train(), tiny.tokenizer())
    assert not subject.model.training
    assert not any(p.requires_grad for p in subject.model.parameters())
    states = subject.encode(tiny.text(9)).states
    assert not states.requires_grad
    weight = torch.ones(32, requires_grad=True)
    (states * weight).sum().backward()
    torch.testing.assert_close(weight.grad, states.sum(0))
    assert torch.is_grad_enabled()
    iterator = subject.stream(tiny.text(40))
    next(iterator)
    assert not torch.is_inference_mode_enabled()  # between windows the consumer's mode holds


def test_long_text_streams_without_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="transformers"):
        logging.getLogger("transformers").addHandler(caplog.handler)
        try:
            list(encoder().stream(tiny.text(100)))
            quiet = not caplog.records
            tiny.tokenizer()(tiny.text(100))  # the call that does warn
        finally:
            logging.getLogger("transformers").removeHandler(caplog.handler)
    assert quiet
    assert "longer than" in caplog.text


def test_stream_keeps_no_window_and_runs_only_when_asked():
    subject, calls = encoder(), []
    subject.model.register_forward_hook(lambda *_: calls.append(1))
    iterator = subject.stream(tiny.text(200))
    assert not calls
    window = next(iterator)
    assert len(calls) == 1
    dead = [weakref.ref(window), *(weakref.ref(layer) for layer in window.layers)]
    del window
    gc.collect()
    assert not any(ref() is not None for ref in dead)


@pytest.mark.parametrize("source", ["", "   \n", [], torch.zeros(0, dtype=torch.int64)])
def test_empty_text_is_refused_at_once(source):
    with pytest.raises(EncoderError, match="tiny bert: the text has no token"):
        encoder().stream(source)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([1, 94], r"ids from 1 to 94 \(shape \(2,\)\) do not fit a vocabulary of 94"),
        ([-1, 5], "ids from -1 to 5"),
        (torch.zeros(2, 3, dtype=torch.int64), r"shape \(2, 3\)"),
        (torch.zeros(3), r"shape \(3,\) and type torch.float32"),
        (["a text", "another"], "type list is no text"),
        (None, "type NoneType is no text"),
        (b"bytes", "type bytes is no text"),
    ],
)
def test_bad_sources_are_refused_at_once(source, words):
    with pytest.raises(EncoderError, match=words):
        encoder().stream(source)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": 0}, "window is 0"),
        ({"window": True}, "window is True"),
        ({"window": 2.5}, "window is 2.5"),
        ({"window": 2}, "at least 3"),
        ({"window": 12, "overlap": 5}, "at least 13"),
        ({"overlap": -1}, "overlap is -1"),
    ],
)
def test_impossible_windows_are_refused_at_once(settings, words):
    with pytest.raises(EncoderError, match=words):
        encoder().stream(tiny.text(9), **settings)


class Odd(nn.Module):
    """A model whose forward gives whatever hidden states it was made with."""

    def __init__(self, hidden_states) -> None:
        super().__init__()
        self.config = tiny.model("bert").config
        self.embedding = nn.Embedding(94, 32)
        self.hidden_states = hidden_states

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, **_):
        return type("Output", (), {"hidden_states": self.hidden_states})()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "forward of Odd returns no hidden_states"),
        ((), "forward of Odd returns no hidden_states"),
        ((torch.zeros(1, 4, 32),) * 3, r"gives 3 hidden states of shape \(1, 4, 32\)"),
        ((torch.zeros(1, 4, 16),) * 4, r"shapes \[\(1, 4, 16\)\]"),
        ((torch.zeros(1, 4, 32), *[torch.zeros(1, 2, 32)] * 3), r"\(1, 2, 32\), \(1, 4, 32\)"),
    ],
)
def test_model_without_usable_hidden_states_is_named(given, words):
    subject = TextEncoder(Odd(given), tiny.tokenizer(), name="odd one")
    with pytest.raises(EncoderError, match=f"odd one.*{words}"):
        subject.encode(tiny.text(2))


def test_states_that_are_not_finite_are_named_with_their_row():
    bad = torch.zeros(1, 3, 32)
    bad[0, 2, 5] = float("inf")
    odd = TextEncoder(Odd((bad * 0, bad * 0, bad * 0, bad)), tiny.tokenizer(), name="odd one")
    with pytest.raises(EncoderError, match=r"row 2, column 5 .*\(3, 32\).*float32"):
        odd.encode("w1")


def test_config_without_layers_is_named():
    plain = tiny.model("bert")
    plain.config.num_hidden_layers = 0
    with pytest.raises(EncoderError, match="num_hidden_layers 0"):
        TextEncoder(plain, tiny.tokenizer())


def test_join_wants_windows_in_order():
    first, second, *_ = encoder().stream(tiny.text(60))
    with pytest.raises(EncoderError, match="starts at token 0"):
        join([second, first])
    with pytest.raises(EncoderError, match="no window"):
        join([])
