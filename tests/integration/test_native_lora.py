"""LoRA with the native delivery: a prompt is prefilled and answered by its own adapter alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qm_vllm import QuickMergeConfig
from tests.engines import engine, random_prompt
from tests.integration.generate import greedy
from tests.integration.left_empty import left_empty

IDS, RANK = random_prompt(701, 3), 8


def make_adapter(folder: Path, seed: int) -> str:
    """A random adapter of the tiny Llama's queries and values."""
    import torch
    from safetensors.torch import save_file

    chooser = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(6):
        for name, out in (("q_proj", 128), ("v_proj", 64)):
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for part, shape in (("lora_A", (RANK, 128)), ("lora_B", (out, RANK))):
                tensors[f"{place}.{part}.weight"] = 0.2 * torch.randn(shape, generator=chooser)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none",
        "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM",
    }))
    return str(folder)


@pytest.fixture(scope="module")
def llm(tiny_models):
    with engine(
        tiny_models("llama"), QuickMergeConfig(), skip_tokenizer_init=True, enable_lora=True,
        max_loras=2, max_lora_rank=RANK,
    ) as llm:
        yield llm


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    from vllm.lora.request import LoRARequest

    folder = tmp_path_factory.mktemp("adapters")
    made = [
        LoRARequest(name, number, make_adapter(folder / name, number))
        for number, name in enumerate("ab", start=1)
    ]
    return [None, *made]


def test_adapters_answer_for_themselves(llm, adapters):
    """Keep-all is plain vLLM with that adapter, and nothing is shared between adapters."""
    ways = [
        {"enabled": False}, {"delivery": "native", "ratio": 1.0}, {"delivery": "native"}, {},
    ]
    with left_empty(llm):
        answers, reports = [], []
        for way in ways:
            outs = [
                llm.generate(
                    [{"prompt_token_ids": IDS}], greedy(16, **way), lora_request=adapter,
                    use_tqdm=False,
                )[0]
                for adapter in adapters
            ]
            answers.append([tuple(out.outputs[0].token_ids) for out in outs])
            reports.append([out.kv_transfer_params["quickmerge"] for out in outs])
    plain, whole, cut, default = answers
    assert whole == plain
    assert len({*whole, *cut}) == 6
    assert all(report["status"] == "compressed" for report in reports[1] + reports[2])
    assert not any(report["cached"] for report in reports[1] + reports[2])
    # So does the default, where the encoder cannot run.
    assert default == cut
    assert all(report["cached"] for report in reports[3])
