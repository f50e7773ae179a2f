"""Keep-all goes the whole way (encoder, merge, delivery) and must change nothing."""

from __future__ import annotations

import pytest

from qm_vllm import QuickMergeConfig
from tests.engines import TINY_FAMILIES, engine, random_prompt
from tests.integration.generate import greedy, run

PROMPTS = [random_prompt(length, seed) for seed, length in enumerate((300, 601, 1025))]


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_keep_all_equals_plain_vllm(tiny_models, family):
    options = {"skip_tokenizer_init": True, "enable_prefix_caching": False}
    with engine(tiny_models(family), **options) as llm:
        plain = run(llm, PROMPTS, greedy(64))
    with engine(tiny_models(family), QuickMergeConfig(ratio=1.0), **options) as llm:
        for delivery in ("inject", "prefill"):
            ours = run(llm, PROMPTS, greedy(64, delivery=delivery))
            for (want, _), (got, report), ids in zip(plain, ours, PROMPTS, strict=True):
                assert report["status"] == "compressed", report
                assert report["delivery"] == delivery
                assert report["kept_tokens"] == len(ids)
                assert got == want
