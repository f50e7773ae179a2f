"""The harness's decoder, prefill and reader against transformers' own forward."""

import pytest
import torch

from qm_vllm_eval.reference.decoder import Decoder, UnsupportedModel
from qm_vllm_eval.reference.prefill import Prefill
from qm_vllm_eval.reference.reader import CompressedContext, Reader
from tests.engines import TINY_FAMILIES, random_prompt
from tests.unit.eval.models import tiny

pytestmark = pytest.mark.parametrize("family", TINY_FAMILIES)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def whole(prefill: Prefill, count: int) -> CompressedContext:
    """KV of the first tokens, nothing dropped."""
    kept = torch.arange(count)
    layers = range(prefill.decoder.num_layers)
    return CompressedContext(
        [prefill.keys_at(layer, kept, kept) for layer in layers],
        [prefill.values_at(layer, kept) for layer in layers],
        count,
    )


def test_prefill_gives_transformers_logits_and_states(family):
    model, ids = tiny(family), random_prompt(90, 1)
    prefill = Prefill.run(Decoder(model), ids)
    truth = model(torch.tensor([ids]), output_hidden_states=True)
    torch.testing.assert_close(
        prefill.decoder.logits(prefill.states[-1]), truth.logits[0], atol=2e-4, rtol=1e-4
    )
    for ours, theirs in zip(prefill.states[:-1], truth.hidden_states[:-1], strict=True):
        torch.testing.assert_close(ours, theirs[0], atol=1e-4, rtol=1e-4)


def test_window_attention_is_what_transformers_computes(family):
    from transformers import AutoModelForCausalLM

    model, ids = tiny(family), random_prompt(70, 2)
    eager = AutoModelForCausalLM.from_pretrained(
        model.config._name_or_path, dtype=torch.float32, attn_implementation="eager"
    )
    truth = eager(torch.tensor([ids]), output_attentions=True).attentions
    prefill = Prefill.run(Decoder(model), ids)
    for layer in (0, 3):
        torch.testing.assert_close(
            prefill.head_attention(layer, 9), truth[layer][0, :, -9:], atol=1e-5, rtol=1e-4
        )


def test_reader_scores_and_continues_as_transformers_does(family):
    model, ids = tiny(family), random_prompt(100, 3)
    decoder = Decoder(model)
    prefill = Prefill.run(decoder, ids)
    target = random_prompt(7, 4)
    full = torch.tensor([[*ids, *target]])
    losses = -model(full).logits[0, 99:-1].log_softmax(-1)
    truth = losses.gather(-1, torch.tensor(target)[:, None]).mean()
    said = model.generate(
        torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, 100:].tolist()
    # The same prompt in a batch of contexts of three sizes, so that padding is exercised.
    contexts = [whole(prefill, 95), whole(prefill, 40), whole(prefill, 95), whole(prefill, 94)]
    readings = Reader(decoder).read(contexts, [ids[95:]] * 4, target, 12)
    for reading in (readings[0], readings[2]):
        assert reading.nll == pytest.approx(float(truth), abs=1e-4)
        assert reading.prediction_ids == said
        assert not reading.exact
    assert readings[1].nll != pytest.approx(float(truth), abs=1e-3)
    alone = Reader(decoder).read(contexts[1:2], [ids[95:]], target, 12)[0]
    assert readings[1].nll == pytest.approx(alone.nll, abs=1e-4)
    assert readings[1].prediction_ids == alone.prediction_ids
    assert Reader(decoder).answer(contexts[0], ids[95:], 12) == said
    # A target that greedy decoding gives is recognised without decoding.
    told = Reader(decoder).read(contexts[:1], [ids[95:]], said[:5], 12)[0]
    assert told.exact
    assert told.prediction_ids == said[:5]


def test_generation_ends_at_an_end_token(family):
    model, ids = tiny(family), random_prompt(60, 5)
    decoder = Decoder(model)
    context = whole(Prefill.run(decoder, ids), 59)
    free = Reader(decoder).read([context], [ids[59:]], [511], 10)[0].prediction_ids
    stop = free[4]
    cut = Reader(decoder).read([context], [ids[59:]], [511], 10, {stop})[0].prediction_ids
    assert cut == free[: free.index(stop)]
    assert Reader(decoder).answer(context, ids[59:], 10, {stop}) == cut
    assert Reader(decoder).answer(context, ids[59:], 3) == free[:3]


def test_layers_may_hold_different_numbers_of_entries(family):
    decoder = Decoder(tiny(family))
    ids = random_prompt(50, 6)
    one, two = (whole(Prefill.run(decoder, ids), 49) for _ in range(2))
    for layer in range(decoder.num_layers):
        two.keys[layer] = two.keys[layer][:, : 20 + 3 * layer]
        two.values[layer] = two.values[layer][:, : 20 + 3 * layer]
    both = Reader(decoder).read([one, two], [ids[49:]] * 2, [5, 6, 7])
    for context, reading in zip((one, two), both, strict=True):
        alone = Reader(decoder).read([context], [ids[49:]], [5, 6, 7])[0]
        assert reading.nll == pytest.approx(alone.nll, abs=1e-4)
    assert two.entries == 20 + 3 * (decoder.num_layers - 1) / 2


def test_bad_batches_are_refused(family):
    decoder = Decoder(tiny(family))
    ids = random_prompt(20, 7)
    context = whole(Prefill.run(decoder, ids), 19)
    with pytest.raises(ValueError, match="feed must hold"):
        Reader(decoder).read([context], [[]], [1])
    with pytest.raises(ValueError, match="feed must hold"):
        Reader(decoder).read([context, context], [[1], [1, 2]], [1])
    with pytest.raises(ValueError, match="at least one token"):
        Reader(decoder).read([context], [[1]], [])


def test_other_architectures_are_refused_with_their_name(family):
    with pytest.raises(UnsupportedModel, match="OPTForCausalLM is not supported"):
        Decoder(tiny("opt"))


def test_heads_of_a_layer_may_have_kept_different_numbers(family):
    """What stands before a head's own entries is not read, and does not count."""
    model, ids = tiny(family), random_prompt(60, 5)
    decoder = Decoder(model)
    prefill = Prefill.run(decoder, ids)
    plain, target = whole(prefill, 58), random_prompt(3, 6)
    few = whole(prefill, 58)
    few.keys, few.values = ([part[:, 38:] for part in own] for own in (few.keys, few.values))
    shape = (decoder.num_kv_heads,)
    few_of_all = whole(prefill, 58)
    few_of_all.heads = [torch.full(shape, 20)] * decoder.num_layers
    mixed = whole(prefill, 58)
    counts = torch.full(shape, 20)
    counts[0] = 58
    mixed.heads = [counts] * decoder.num_layers
    assert (few_of_all.entries, mixed.entries) == (20, counts.float().mean())
    read = Reader(decoder).read([plain, few, few_of_all, mixed], [ids[58:]] * 4, target, 6)
    assert read[2].nll == pytest.approx(read[1].nll, abs=1e-4)
    assert read[2].prediction_ids == read[1].prediction_ids
    told = {round(reading.nll, 4) for reading in read}
    assert len(told) == (3 if decoder.num_kv_heads > 1 else 2)
    together = Reader(decoder).read([mixed, plain], [ids[58:]] * 2, target, 6)
    assert together[0].nll == pytest.approx(read[3].nll, abs=1e-4)
    assert together[1].nll == pytest.approx(read[0].nll, abs=1e-4)
