"""Own tokens for every KV head: the repeated document against transformers, and the sharing."""

from __future__ import annotations

import pytest
import torch

from qm_vllm_eval.methods import Request, head_cover
from qm_vllm_eval.reference.decoder import Decoder
from qm_vllm_eval.reference.prefill import Prefill
from tests.engines import random_prompt
from tests.unit.eval.models import tiny


def test_peaks_are_those_of_transformers_on_the_text_and_its_copy():
    model, ids = tiny("llama"), random_prompt(90, 4)
    with torch.inference_mode():
        prefill = Prefill.run(Decoder(model), ids)
        got = head_cover.repeated_attention(Request(prefill, 0, 40, visible=False))
        model.set_attn_implementation("eager")
        try:
            seen = model(torch.tensor([ids + ids[4:]]), output_attentions=True).attentions
        finally:
            model.set_attn_implementation("sdpa")
    for layer, weights in enumerate(seen):
        peaks = weights[0, :, 90:, :90].amax(1)
        grouped = peaks.reshape(got.shape[1], -1, 90).amax(1)
        torch.testing.assert_close(got[layer], grouped, atol=1e-5, rtol=1e-3)


def test_heads_that_look_at_the_same_tokens_share_them():
    peaks = torch.linspace(0, 1, 40).repeat(6, 1)
    shared = torch.tensor([0, 1])
    kept = head_cover.choose(peaks, shared, 12)
    assert kept.shape == (6, 12)
    for row in kept:
        assert row.tolist() == sorted(set(row.tolist()))
        assert {0, 1} <= set(row.tolist())
    assert kept[0].tolist() == [0, 1, *range(30, 40)]
    assert len(set(kept.flatten().tolist())) > 12


@pytest.mark.parametrize("k", [1, 5, 40])
def test_any_budget_fits(k):
    with torch.inference_mode():
        prefill = Prefill.run(Decoder(tiny("llama")), random_prompt(40, 2))
        context = head_cover.compress(Request(prefill, 0, k, visible=False))
    assert {keys.shape[1] for keys in context.keys} == {k}
