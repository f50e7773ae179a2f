"""A hybrid model (Gemma 3): scored in the full layers, delivered by a second prefill."""

from __future__ import annotations

import pytest
import torch

from qm_vllm import QuickMergeConfig, request_args
from tests.engines import engine, random_prompt
from tests.reference import looked_up

DEPTH, RATIO, TAIL = 5, 0.3, 32


@pytest.fixture(scope="module")
def gemma(tiny_models):
    folder = tiny_models("gemma3")
    config = QuickMergeConfig(
        ratio=RATIO, min_tokens=2, encoder_layers=DEPTH, delivery="prefill", details=True,
        encoder_chunk_tokens=96,
    )
    with engine(folder, config) as llm:
        yield folder, llm


def ask(llm, ids, **options):
    from vllm import SamplingParams

    params = SamplingParams(
        max_tokens=8, temperature=0, ignore_eos=True, detokenize=False,
        extra_args=request_args(**options) or None,
    )
    (output,) = llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
    return list(output.outputs[0].token_ids), output.kv_transfer_params["quickmerge"]


@pytest.mark.parametrize("length", [150, 400])
def test_kept_tokens_and_reply_equal_transformers(gemma, length):
    from transformers import AutoModelForCausalLM

    folder, llm = gemma
    ids = random_prompt(length, seed=length)
    tokens, report = ask(llm, ids)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        seen = model(torch.tensor([ids]), output_attentions=True).attentions
    windows = torch.cat([seen[layer][0, :, -64:].double() for layer in (2, 4)])
    score = looked_up(windows, length, TAIL)
    score[:4] = score[length - TAIL :] = 2
    kept = sorted(sorted(range(length), key=lambda i: -float(score[i]))[: report["kept_tokens"]])
    assert report["status"] == "compressed"
    assert report["kept_tokens"] == -(-3 * length // 10)
    assert report["details"]["kept_indices"] == kept
    prompt = torch.tensor([[ids[i] for i in kept]])
    with torch.inference_mode():
        expected = model.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert tokens == expected[0, len(kept) :].tolist()


def test_the_inject_delivery_says_why_it_cannot_work(gemma):
    _, llm = gemma
    _, report = ask(llm, random_prompt(150, seed=1), delivery="inject")
    assert report["status"] == "untouched"
    assert 'sliding-window layers; use delivery="auto", "native" or "prefill"' in report["reason"]
