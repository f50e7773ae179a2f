"""Where layers can keep more than others, where they cannot, and what is then said."""

from __future__ import annotations

import logging

import pytest

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.native import layer_groups
from tests.engines import engine, random_prompt
from tests.integration.generate import greedy, run
from tests.native_reference import NativeReference

BLOCK, TOKENS, SHARE = 32, 12, 0.6
PROMPTS = [random_prompt(length, seed) for seed, length in ((3, 300), (4, 701))]
OPTIONS = {"ratio": 0.4, "head_share": 0.0}


def test_what_the_prefix_cache_does_not_hold_is_brought(tiny_models):
    folder = tiny_models("llama")
    reference = NativeReference(str(folder))
    config = QuickMergeConfig(delivery="native", layer_share=SHARE)
    params = greedy(TOKENS, details=True, **OPTIONS)
    params.logprobs = 0
    with engine(
        folder, config, skip_tokenizer_init=True, enable_prefix_caching=False,
    ) as llm:
        outs = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], params, use_tqdm=False)
    for ids, out in zip(PROMPTS, outs, strict=True):
        report = out.kv_transfer_params["quickmerge"]
        want = reference.generate(
            ids, block_size=BLOCK, max_tokens=TOKENS, special=(0, 1, 2), layer_share=SHARE,
            **OPTIONS,
        )
        want.reported(report).check(out.outputs[0], 1)


@pytest.mark.parametrize(("config", "grouped"), [
    (QuickMergeConfig(delivery="native"), True),
    (QuickMergeConfig(delivery="native", layer_share=0.0), False),
    (QuickMergeConfig(), False),  # the encoder can run there
    (QuickMergeConfig(layer_share=0.5), True),
    (QuickMergeConfig(delivery="native", enabled=False), False),
], ids=["native", "native, 0", "auto", "auto, 0.5", "off"])
def test_layers_keep_more_where_nothing_is_lost_by_it(tiny_models, config, grouped):
    with engine(tiny_models("qwen3"), config, skip_tokenizer_init=True) as llm:
        ((_, report),) = run(
            llm, PROMPTS[1:], greedy(TOKENS, enabled=True, delivery="native", **OPTIONS)
        )
    assert report["status"] == "compressed", report
    assert ("kept_by_layers" in report) is grouped


@pytest.mark.parametrize(("family", "options", "why"), [
    ("gemma3", {}, "layers have sliding windows"),
    ("llama", {"disable_hybrid_kv_cache_manager": True}, "vLLM's hybrid KV-cache manager is off"),
])
def test_where_layers_cannot_keep_more_it_is_said_and_all_is_served(
    tiny_models, caplog, monkeypatch, family, options, why
):
    config = QuickMergeConfig(delivery="native", layer_share=SHARE)
    # An engine sets vLLM's own loggers up anew when it starts.
    monkeypatch.setattr(layer_groups, "logger", logging.getLogger("plain"))
    with caplog.at_level("WARNING", logger="plain"), engine(
        tiny_models(family), config, skip_tokenizer_init=True, **options
    ) as llm:
        ((_, report),) = run(llm, PROMPTS[:1], greedy(TOKENS, **OPTIONS))
    assert report["status"] == "compressed", report
    assert "kept_by_layers" not in report
    (record,) = [one for one in caplog.records if one.name == "plain"]
    assert record.levelname == "WARNING"  # it was asked for
    assert record.message.endswith(why)
