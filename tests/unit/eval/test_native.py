"""KV of all layers at chosen positions: the shared ones, each head's own, and the scores."""

from __future__ import annotations

import pytest
import torch

from qm_vllm.compress import kept_places, run_twice
from qm_vllm_eval.methods import METHODS, Request, native
from qm_vllm_eval.methods import expected_attention as gaussian
from qm_vllm_eval.reference.decoder import Decoder, rotate
from qm_vllm_eval.reference.habits import habits_of
from qm_vllm_eval.reference.prefill import Prefill
from tests.engines import random_prompt
from tests.unit.eval.models import tiny

TOKENS = 240


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def prefill():
    with torch.inference_mode():
        return Prefill.run(Decoder(tiny("llama")), random_prompt(TOKENS, 7))


def test_one_choice_is_the_plain_kv_where_quickmerge_keeps(prefill):
    request = Request(prefill, 1, 80)
    context = METHODS["native-one-choice"].compress(request)
    assert context.kept == METHODS["quickmerge"].compress(request).kept
    kept = torch.tensor(context.kept)
    for number in range(prefill.decoder.num_layers):
        assert torch.equal(context.keys[number], prefill.keys_at(number, kept, kept))
        assert torch.equal(context.values[number], prefill.values_at(number, kept))


EQUAL = [name for name, heads in native.VARIANTS.items() if heads and not heads.layers]


@pytest.mark.parametrize("name", EQUAL)
def test_every_head_holds_k_rows_the_protected_ones_and_some_of_its_own(prefill, name):
    request = Request(prefill, 1, 120)
    context = METHODS[name].compress(request)
    one = set(METHODS["native-one-choice"].compress(request).kept)
    first, ends = set(range(4)), set(range(TOKENS - 32, TOKENS - 1))
    places, found, held = torch.arange(TOKENS), [], []
    for number, (keys, values) in enumerate(zip(context.keys, context.values, strict=True)):
        plain = prefill.keys_at(number, places, places)
        for head, (own, all_keys) in enumerate(zip(keys, plain, strict=True)):
            kept = torch.cdist(own, all_keys).argmin(1)
            assert kept.tolist() == sorted(set(kept.tolist()))
            assert len(kept) == 119
            assert first <= set(kept.tolist())
            held.append(ends <= set(kept.tolist()))
            assert torch.equal(own, all_keys[kept])
            assert torch.equal(values[head], prefill.values[number][head, kept])
            found.append(len(set(kept.tolist()) - one))
    habits = torch.cat(habits_of(prefill.decoder).looking) >= 1
    assert int(habits.sum()) == max(1, round(len(habits) / 8))
    others, whole = torch.tensor(found), torch.tensor(held)
    assert not bool(whole.all())
    if name != "native-all-heads":
        assert bool(whole[habits].all())
        assert int(others[habits].max()) <= 0.1 * 84
    assert int(others[~habits].min()) > 0.2 * 84


def test_layers_that_look_things_up_may_keep_more_of_the_same_entries(prefill):
    request = Request(prefill, 1, 120)
    context = METHODS["native"].compress(request)
    looking = habits_of(prefill.decoder).large
    sizes = [len(keys[0]) for keys in context.keys]
    assert context.entries == 119
    assert {size > 119 for size, one in zip(sizes, looking, strict=True) if one} == {True}
    assert {size < 119 for size, one in zip(sizes, looking, strict=True) if not one} == {True}


def test_habits_are_learned_once_and_stand_behind_the_prompt(prefill):
    decoder = prefill.decoder
    habits = habits_of(decoder)
    assert habits_of(decoder) is habits
    ids = run_twice(decoder.config.vocab_size)
    again = Prefill.run(decoder, ids)
    places = torch.tensor(kept_places(len(ids) // 2))
    for layer in range(decoder.num_layers):
        plain = decoder.project(layer, again.states[layer][None])[0][0][:, places]
        cos, sin = decoder.angles((places - places[0] + TOKENS)[None])
        want = rotate(plain, cos[0], sin[0]).transpose(0, 1)
        torch.testing.assert_close(habits.queries_at(decoder, layer, TOKENS), want)


def test_expected_attention_is_that_of_many_gaussian_queries():
    make = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(50, 2, 8, generator=make) for _ in range(2))
    queries = torch.randn(4000, 4, 8, generator=make) + 0.5
    got = gaussian.expected_attention(queries, keys, values, 0.3)
    each = queries.permute(1, 0, 2).unflatten(0, (2, 2))
    logits = torch.einsum("gewd,ngd->gewn", each, keys) * 0.3
    mean = logits[..., gaussian.SINKS :].exp().mean(2)
    want = (mean / mean.sum(-1, keepdim=True)).mean(1) * values.norm(dim=-1).T[:, gaussian.SINKS :]
    torch.testing.assert_close(got[:, gaussian.SINKS :], want, atol=1e-3, rtol=0.03)
    assert not got[:, : gaussian.SINKS].any()


def test_queries_ahead_stand_at_the_mean_of_the_positions_to_come(prefill):
    decoder = prefill.decoder
    plain = torch.randn(3, decoder.num_heads, decoder.head_dim)
    cos, sin = decoder.angles(torch.arange(TOKENS, TOKENS + native.AHEAD)[None])
    got = gaussian.ahead(plain, cos[0, 0].mean(0), sin[0, 0].mean(0))
    turned = [rotate(plain, c, s) for c, s in zip(cos[0, 0], sin[0, 0], strict=True)]
    torch.testing.assert_close(got, torch.stack(turned).mean(0), atol=1e-4, rtol=1e-4)
