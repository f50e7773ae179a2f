"""KV of all layers at chosen positions: the shared ones, each head's own, and the scores."""

from __future__ import annotations

import pytest
import torch

from qm_vllm.compress import Evidence, QueryAttention, score_tokens, scores_of_heads
from qm_vllm.config import QuickMergeConfig
from qm_vllm_eval.methods import METHODS, Request, head_scores, native
from qm_vllm_eval.reference.decoder import Decoder, rotate
from qm_vllm_eval.reference.prefill import Prefill
from tests.engines import random_prompt
from tests.unit.eval.models import tiny

TOKENS = 240
LAYER = 3


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def prefill():
    with torch.inference_mode():
        return Prefill.run(Decoder(tiny("llama")), random_prompt(TOKENS, 7))


@pytest.fixture
def layer(prefill):
    none = torch.zeros(TOKENS, dtype=torch.bool)
    return native.Layer(prefill, LAYER, none, none)


def test_native_is_the_plain_kv_where_quickmerge_keeps(prefill):
    request = Request(prefill, 1, 80)
    context = METHODS["native"].compress(request)
    assert context.kept == METHODS["quickmerge"].compress(request).kept
    kept = torch.tensor(context.kept)
    for number in range(prefill.decoder.num_layers):
        assert torch.equal(context.keys[number], prefill.keys_at(number, kept, kept))
        assert torch.equal(context.values[number], prefill.values_at(number, kept))


@pytest.mark.parametrize("score", native.SCORES)
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_every_head_holds_k_rows_and_what_is_shared(prefill, score, share):
    request = Request(prefill, 1, 80)
    context = native.compress(score, share, request)
    shared, protected = native.shared_positions(request, share)
    assert len(shared) == max(round((1 - share) * 80), int(protected.sum()))
    places = torch.arange(TOKENS)
    differ = False
    for number, keys in enumerate(context.keys):
        plain = prefill.keys_at(number, places, places)
        for own, all_keys in zip(keys, plain, strict=True):
            kept = torch.cdist(own, all_keys).argmin(1)
            assert kept.tolist() == sorted(set(kept.tolist()))
            assert len(kept) == 79
            assert {int(i) for i in shared if i < TOKENS - 1} <= set(kept.tolist())
            differ |= not torch.equal(kept, torch.tensor(METHODS["native"].compress(request).kept))
    assert differ


def test_window_attention_is_that_of_the_prefill(prefill, layer):
    heads = prefill.head_attention(LAYER, 64).mean(1)
    grouped = heads.reshape(prefill.decoder.num_kv_heads, -1, TOKENS)
    for group, want in (("mean", grouped.mean(1)), ("max", grouped.amax(1))):
        got = head_scores.window_attention_of_heads(
            layer.window(), layer.keys, layer.scale, group=group, pool=1
        )
        torch.testing.assert_close(got, want)
    pooled = head_scores.window_attention_of_heads(layer.window(), layer.keys, layer.scale, pool=3)
    assert float(pooled[0, 9]) == pytest.approx(float(grouped.mean(1)[0, 8:11].max()))


def test_query_of_one_head_is_the_score_query_of_its_attention(prefill, layer):
    groups = prefill.decoder.num_heads // prefill.decoder.num_kv_heads
    got = head_scores.query_of_heads(layer.window(), layer.keys, layer.scale)
    evidence = Evidence(num_tokens=TOKENS)
    heads = prefill.head_attention(LAYER, 64)[groups : 2 * groups]
    evidence.attention = [QueryAttention.of(heads)]
    config = QuickMergeConfig(protect_first=head_scores.SINKS, protect_last=head_scores.TAIL)
    want = score_tokens(evidence, config)
    best = [set(scores.topk(40).indices.tolist()) for scores in (got[1], want)]
    assert len(best[0] & best[1]) >= 38  # rounding decides between tokens that are looked at alike


@pytest.mark.parametrize("at_once", [1, 1 << 17, 1 << 30])
def test_the_chosen_score_is_query_times_value_norm_however_it_is_cut(prefill, layer, at_once):
    got = scores_of_heads(layer.window(), layer.keys, layer.values, layer.scale, at_once)
    norms = head_scores.value_norms(layer.values)
    want = head_scores.query_of_heads(layer.window(), layer.keys, layer.scale, norms)
    for mine, theirs in zip(got, want, strict=True):
        best = [set(scores.topk(40).indices.tolist()) for scores in (mine, theirs)]
        assert len(best[0] & best[1]) >= 38  # rounding decides between tokens that rank alike


def test_expected_attention_is_the_mean_over_gaussian_queries():
    torch.manual_seed(0)
    keys, mean = torch.randn(30, 2, 8), torch.randn(4, 8)
    queries = mean + torch.randn(200_000, 4, 8) * 0.5
    got = head_scores.expected_attention(queries, keys, 0.3)
    logits = torch.einsum("whd,nhd->whn", queries * 0.3, keys.repeat_interleave(2, 1))
    weights = logits[..., head_scores.SINKS :].exp().mean(0)
    want = (weights / weights.sum(-1, keepdim=True)).unflatten(0, (2, 2)).mean(1)
    torch.testing.assert_close(got[:, head_scores.SINKS :], want, atol=1e-3, rtol=0.02)
    assert not got[:, : head_scores.SINKS].any()


def test_queries_ahead_are_means_over_positions(prefill, layer):
    plain = layer.plain_queries(-5)
    cos, sin = prefill.decoder.angles(torch.arange(TOKENS, TOKENS + native.AHEAD)[None])
    turned = rotate(plain.transpose(0, 1)[:, :, None], cos[0, :, None], sin[0, :, None]).mean(2)
    torch.testing.assert_close(layer.ahead(plain), turned.transpose(0, 1), atol=1e-5, rtol=1e-4)


def test_keys_like_the_mean_key_go_first():
    keys = torch.zeros(5, 1, 2)
    keys[:, 0, 0] = 1
    keys[3, 0] = torch.tensor([0.0, 1.0])
    assert int(head_scores.key_difference(keys).argmax()) == 3


def test_a_head_that_looks_up_prefers_what_is_wanted():
    own = torch.tensor([[0.0, 5, 1, 1, 1, 1]] * 2)
    wanted = torch.tensor([0, 0, 0, 1, 1, 0], dtype=torch.bool)
    protected = torch.tensor([1, 0, 0, 0, 0, 0], dtype=torch.bool)
    recent = torch.tensor([[0.5, 0, 0, 0.3, 0.2, 0], [0.5, 0.2, 0.2, 0, 0, 0.1]])
    scores = head_scores.looked_up(own, recent, wanted, protected)
    assert scores[0].topk(2).indices.sort().values.tolist() == [3, 4]
    assert int(scores[1].argmax()) == 1
    torch.testing.assert_close(scores.sum(1), torch.ones(2))


def test_attention_reaches_forward(layer):
    ones = torch.ones(layer.keys.shape[1], TOKENS)
    got = head_scores.reached_attention(layer.window(), layer.keys, layer.scale, ones)
    inside = got[:, head_scores.SINKS : TOKENS - head_scores.TAIL]
    assert (inside[:, 1:] >= inside[:, :-1] * 0.88).all()  # falls to 1/e in 8 tokens or more
    assert (got >= 0).all()
