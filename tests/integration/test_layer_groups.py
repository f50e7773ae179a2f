"""Layers that look things up keep more than the others: the engine equals transformers."""

from __future__ import annotations

import pytest

from qm_vllm import QuickMergeConfig
from tests.engines import engine, random_prompt
from tests.families import make_model
from tests.integration.generate import greedy, run
from tests.native_reference import NativeReference
from tests.tokens import reading_hints, text_of

BLOCK, TOKENS, SHARE = 32, 12, 0.6
PROMPTS = [random_prompt(length, seed) for seed, length in ((3, 300), (4, 701), (5, 1500))]
HINT = tuple(random_prompt(20, 5))
OPTIONS = {"ratio": 0.4, "head_share": 0.0}


@pytest.fixture(scope="module", params=["llama", "qwen3", "qwen3-moe", "glm-4", "nemotron"])
def folder(request, tmp_path_factory):
    return make_model(request.param, tmp_path_factory.mktemp("groups"))


@pytest.fixture(scope="module")
def reference(folder):
    return NativeReference(str(folder))


@pytest.fixture(scope="module")
def llm(folder, reference):
    config = QuickMergeConfig(delivery="native", layer_share=SHARE)
    with engine(folder, config, skip_tokenizer_init=True, max_num_batched_tokens=256) as llm:
        yield reading_hints(llm)


def asked(hint=(), visible=True):
    options = {"hint": text_of(hint), "query_visible": visible, **OPTIONS}
    params = greedy(TOKENS, details=True, **options)
    params.logprobs = 0
    return params


@pytest.mark.parametrize(("hint", "visible"), [((), True), (HINT, True), ((), False)],
                         ids=["alone", "with a hint", "blind"])
def test_layers_keep_what_the_reference_keeps(live, reference, hint, visible):
    for ids in PROMPTS:
        (out,) = live.generate(
            [{"prompt_token_ids": ids}], asked(hint, visible), use_tqdm=False
        )
        report = out.kv_transfer_params["quickmerge"]
        assert report["status"] == "compressed", report
        want = reference.generate(
            ids, block_size=BLOCK, max_tokens=TOKENS, special=(0, 1, 2), hint=hint,
            query_visible=visible, layer_share=SHARE, **OPTIONS,
        )
        sizes = sorted(set(want.sizes.values()))
        assert report["kept_by_layers"] == {"others": sizes[0], "looking_up": sizes[1]}
        assert report["kept_tokens"] == sum(want.sizes.values()) // len(want.sizes)
        want.reported(report).check(out.outputs[0], 1)


def test_plain_requests_and_those_that_keep_all_are_vllms_own(live, reference):
    plain = [tokens for tokens, _ in run(live, PROMPTS, greedy(TOKENS, enabled=False))]
    assert [tokens for tokens, _ in run(live, PROMPTS, greedy(TOKENS, ratio=1.0))] == plain
    for ids, tokens in zip(PROMPTS, plain, strict=True):
        want = reference.generate(ids, block_size=BLOCK, max_tokens=TOKENS, ratio=1.0)
        assert tokens[: want.decided()] == want.tokens[: want.decided()]


def test_no_more_blocks_are_held_than_if_all_layers_kept_the_same(live):
    for _, report in run(live, PROMPTS, greedy(TOKENS, **OPTIONS)):
        mean, sizes = report["kept_tokens"], report["kept_by_layers"]
        assert sizes["others"] < mean < sizes["looking_up"]
        # Three groups of two layers; the last token is computed, but not read.
        assert report["kv_blocks"] == 3 * -(-(mean + TOKENS - 1) // BLOCK)


def test_a_request_for_another_delivery_is_told_what_it_needs(live):
    ((_, report),) = run(live, PROMPTS[:1], greedy(TOKENS, delivery="inject", **OPTIONS))
    assert report["status"] == "untouched"
    assert report["reason"] == (
        "layers that look things up keep more than the others (layer_share); "
        'use delivery="auto", "native" or "prefill"'
    )
    for delivery in ("auto", "prefill"):
        ((_, report),) = run(live, PROMPTS[:1], greedy(TOKENS, delivery=delivery, **OPTIONS))
        assert report["status"] == "compressed", report
        assert ("kept_by_layers" in report) is (delivery == "auto")
