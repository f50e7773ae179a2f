"""What only a CUDA device has: half precision on FlashAttention, an fp8 KV cache, sleep mode."""

from __future__ import annotations

import pytest
import torch

from qm_vllm import QuickMergeConfig
from tests.engines import engine, random_prompt
from tests.integration.generate import greedy, run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

OPTIONS = {"skip_tokenizer_init": True, "max_logprobs": 512}
PROMPTS = [random_prompt(length, length) for length in (300, 700, 1500)]


def logprobs(llm, **extra):
    """Of the first generated token, over the whole vocabulary: [prompts, 512]."""
    params = greedy(1, **extra)
    params.logprobs = 512
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], params, use_tqdm=False)
    reports = [(out.kv_transfer_params or {}).get("quickmerge", {}) for out in outputs]
    table = torch.zeros(len(PROMPTS), 512)
    for row, out in zip(table, outputs, strict=True):
        for token, entry in out.outputs[0].logprobs[0].items():
            row[token] = entry.logprob
    return table, reports


@pytest.fixture(scope="module")
def exact(tiny_models):
    """In float32, by plain vLLM."""
    with engine(tiny_models("llama"), **OPTIONS) as llm:
        return logprobs(llm)[0]


@pytest.mark.parametrize("delivery", ["inject", "prefill"])
@pytest.mark.parametrize(
    "settings", [{}, {"kv_cache_dtype": "fp8"}, {"enforce_eager": False}],
    ids=["bfloat16", "fp8 KV", "CUDA graphs"],
)
def test_keep_all_is_as_close_to_float32_as_plain_vllm(tiny_models, exact, settings, delivery):
    options = {**OPTIONS, "dtype": "bfloat16", **settings}
    with engine(tiny_models("llama"), **options) as llm:
        plain = (logprobs(llm)[0] - exact).abs().mean()
    with engine(tiny_models("llama"), QuickMergeConfig(), **options) as llm:
        got, reports = logprobs(llm, ratio=1.0, delivery=delivery)
        _, cut = logprobs(llm, ratio=0.4, delivery=delivery)
    assert [report["status"] for report in reports + cut] == ["compressed"] * 6, reports + cut
    assert all(r["kept_tokens"] < 0.45 * r["source_tokens"] for r in cut)
    ours = (got - exact).abs().mean()
    print(f"mean error of log-probabilities: plain {plain:.4f}, keep-all {ours:.4f}")
    assert ours <= 1.5 * plain + 0.005


def test_sleep_mode_frees_the_device_and_wakes_up(tiny_models):
    with engine(
        tiny_models("llama"), QuickMergeConfig(ratio=0.4), enable_sleep_mode=True, **OPTIONS
    ) as llm:
        before = run(llm, PROMPTS, greedy(8))
        free = torch.cuda.mem_get_info()[0]
        llm.sleep(level=1)
        assert torch.cuda.mem_get_info()[0] > free + (128 << 20)
        llm.wake_up()
        after = run(llm, PROMPTS, greedy(8))
    assert [tokens for tokens, _ in after] == [tokens for tokens, _ in before]
    assert [report["status"] for _, report in after] == ["compressed"] * 3
