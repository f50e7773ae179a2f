"""Every method of the bench that runs in this process, by one list."""

from dataclasses import replace

import pytest
import torch

from qm_vllm.compress import compress
from qm_vllm.config import QuickMergeConfig
from qm_vllm.layers import resolve_layers
from qm_vllm_eval.methods import (
    METHODS,
    Budget,
    Request,
    UnknownMethod,
    choose_methods,
    even,
    mean_pool,
    truncation,
)
from qm_vllm_eval.methods import random as random_method
from qm_vllm_eval.methods.base import Asked
from qm_vllm_eval.methods.quickmerge import options
from qm_vllm_eval.reference.decoder import Decoder
from qm_vllm_eval.reference.prefill import Prefill
from qm_vllm_eval.reference.reader import Reader
from tests.engines import random_prompt
from tests.unit.eval.models import tiny

OWN = [name for name, method in METHODS.items() if method.compress is not None]
EQUAL = [name for name in OWN if METHODS[name].budget is Budget.GRID and name != "native"]
"""Methods that keep as many tokens in every layer."""
TOKENS = 300


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def prefill():
    with torch.inference_mode():
        return Prefill.run(Decoder(tiny("llama")), random_prompt(TOKENS, 1))


def request_for(prefill, k, *, visible=True):
    return Request(prefill, int(visible), k, visible=visible, special=(0, 5), seed=3)


def read(prefill, context, *, visible=True):
    feed = prefill.ids[-1:] if visible else random_prompt(6, 9)
    return Reader(prefill.decoder).read([context], [feed], random_prompt(8, 8))[0].nll


@pytest.mark.parametrize("visible", [True, False])
@pytest.mark.parametrize("name", EQUAL)
def test_k_is_kept_in_every_layer_and_sources_are_in_order(prefill, name, visible):
    for k in (16, 61, 150):
        context = METHODS[name].compress(request_for(prefill, k, visible=visible))
        held = int(visible)
        assert {keys.shape[1] for keys in context.keys} == {k - held}
        assert {values.shape for values in context.values} == {k.shape for k in context.keys}
        if context.kept is not None:
            assert context.kept == sorted(set(context.kept))
            assert context.kept[0] >= 0
            assert context.kept[-1] < TOKENS - held
        assert torch.isfinite(torch.stack([keys.sum() for keys in context.keys])).all()


@pytest.mark.parametrize("visible", [True, False])
@pytest.mark.parametrize("name", OWN)
def test_keeping_all_is_the_plain_prompt(prefill, name, visible):
    plain = read(prefill, METHODS["plain"].compress(
        request_for(prefill, TOKENS, visible=visible)), visible=visible)
    context = METHODS[name].compress(request_for(prefill, TOKENS, visible=visible))
    limit = 0.1 if "fp8" in name else 1e-4  # fp8 rounds every number to four bits of mantissa
    assert read(prefill, context, visible=visible) == pytest.approx(plain, abs=limit)


@pytest.mark.parametrize("name", EQUAL)
def test_the_same_request_gives_the_same_bits(prefill, name):
    one, two = (METHODS[name].compress(request_for(prefill, 80)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.keys, two.keys, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one.values, two.values, strict=True))


def test_variants_of_quickmerge_differ(prefill):
    seen = {
        name: tuple(METHODS[name].compress(request_for(prefill, 100)).kept or ())
        for name in ("quickmerge", "quickmerge-entropy", "quickmerge-norm", "quickmerge-ned")
    }
    assert len(set(seen.values())) == len(seen)


def test_quickmerge_matches_the_core(prefill):
    """The bench's own wiring against qm_vllm.compress.compress on the same evidence."""
    request = request_for(prefill, 90)
    config = QuickMergeConfig(**options("quickmerge", 90, visible=True))
    depth, (first, last) = resolve_layers(config, prefill.decoder.num_layers)
    ids = prefill.ids
    special = frozenset({ids[0], ids[5]})
    truth = compress(
        prefill.states[depth], config, layer_states=prefill.states[first:last],
        attention=[prefill.head_attention(layer, 64) for layer in (depth - 2, depth - 1)],
        token_ids=ids, special_ids=special,
    )
    places = tuple(i for i, token in enumerate(ids) if token in special)
    request = Request(prefill, 1, 90, special=places)
    ours = METHODS["quickmerge"].compress(request)
    assert ours.kept == truth.kept[:-1].tolist()
    _, upper, _ = prefill.decoder.run(
        truth.states[:-1], depth, prefill.decoder.num_layers, truth.kept[:-1]
    )
    torch.testing.assert_close(ours.values[depth], upper[0][1])
    torch.testing.assert_close(ours.values[-1], upper[-1][1])


@pytest.mark.parametrize("name", ["quickmerge", "native-one-choice"])
@pytest.mark.parametrize("visible", [True, False])
def test_a_hint_looks_behind_what_may_be_seen(name, visible):
    """A blind method with a hint keeps what one keeps whose prompt ends with it, but its ends."""
    decoder, context = Decoder(tiny("llama")), random_prompt(200, 11)
    whole = Prefill.run(decoder, context)
    kept = []
    for seed in (12, 13, 12):
        hint = random_prompt(20, seed)
        asked = Asked("any", 20, Prefill.run(decoder, [*context, *hint]))
        request = Request(whole, int(visible), 70, visible=visible, hint=asked)
        kept.append(METHODS[name].compress(request).kept)
    blind = METHODS[name].compress(replace(request, hint=None, shared={})).kept
    assert kept[0] == kept[2] != kept[1]
    assert blind not in kept
    seen = [asked.prefill.head_attention(layer, 64 if visible else 20)[..., :200]
            for layer in (2, 3)]
    chosen = options("quickmerge", 70, visible=visible)
    want = compress(
        whole.states[4], QuickMergeConfig(**{**chosen, "query_visible": True}), attention=seen
    )
    held = int(visible)
    assert kept[2] == want.kept[: 70 - held].tolist()


def test_a_blind_method_does_not_see_the_question():
    decoder = Decoder(tiny("llama"))
    context = random_prompt(200, 11)
    results = []
    for seed in (12, 13):
        whole = Prefill.run(decoder, [*context, *random_prompt(30, seed)])
        request = Request(whole.upto(200), 0, 70, visible=False)
        results.append([METHODS[name].compress(request).kept for name in EQUAL])
    assert results[0] == results[1]


def test_random_draws_are_nested_and_follow_the_sample(prefill):
    small = set(random_method.compress(request_for(prefill, 40)).kept)
    large = set(random_method.compress(request_for(prefill, 80)).kept)
    assert small < large
    other = Request(prefill, 1, 40, seed=4)
    assert set(random_method.compress(other).kept) != small


def test_simple_methods_keep_what_they_say(prefill):
    cut = truncation.compress(request_for(prefill, 21)).kept
    assert cut == [*range(10), *range(TOKENS - 11, TOKENS - 1)]
    assert even.spread(9, 3).tolist() == [0, 4, 8]
    assert even.spread(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert mean_pool.runs(10, 6).tolist() == [0, 1, 2, 3, 4, 4, 4, 5, 5, 5]


def test_mean_pool_averages_keys_before_rotation(prefill):
    context = mean_pool.compress(request_for(prefill, 100))
    groups = mean_pool.runs(TOKENS - 1, 99)
    members = (groups == 40).nonzero()[:, 0]
    torch.testing.assert_close(
        context.values[1][:, 40], prefill.values[1][:, members].mean(1), atol=1e-5, rtol=1e-4
    )
    plain = prefill.plain_keys[1][:, members].mean(1, keepdim=True)
    torch.testing.assert_close(
        context.keys[1][:, 40:41], prefill.decoder.place(plain, torch.tensor([40])),
        atol=1e-5, rtol=1e-4,
    )


def test_unknown_methods_are_named_with_what_exists():
    with pytest.raises(UnknownMethod, match="'snap' is unknown; known: none, plain, quickmerge"):
        choose_methods(["snap"])
    names = [method.name for method in choose_methods(["random", "plain", "random"])]
    assert names == ["none", "plain", "random"]
