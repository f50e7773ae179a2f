"""Two tensor-parallel ranks whose layers do not all keep as much: both find the same layers."""

from __future__ import annotations

import pytest

from qm_vllm import QuickMergeConfig
from tests.engines import engine, random_prompt
from tests.integration.generate import greedy, run
from tests.native_reference import NativeReference

PROMPTS = [random_prompt(length, length) for length in (700, 300)]


@pytest.mark.parametrize("visible", [True, False], ids=["asked", "blind"])
def test_layers_of_all_ranks_keep_what_those_of_one_keep(tiny_models, visible):
    reference = NativeReference(str(tiny_models("llama")))
    options = {"head_share": 0.0, "query_visible": visible}
    config = QuickMergeConfig(delivery="native", layer_share=0.6, ratio=0.4)
    with engine(
        tiny_models("llama"), config, tensor_parallel_size=2, skip_tokenizer_init=True
    ) as llm:
        got = run(llm, PROMPTS, greedy(12, details=True, **options))
    for ids, (tokens, report) in zip(PROMPTS, got, strict=True):
        want = reference.generate(
            ids, block_size=32, max_tokens=12, ratio=0.4, special=(0, 1, 2), first=True,
            layer_share=0.6, **options,
        )
        assert report["kept_by_layers"]["looking_up"] == max(want.sizes.values())
        want = want.reported(report)
        assert tokens[: want.decided()] == want.tokens[: want.decided()]
