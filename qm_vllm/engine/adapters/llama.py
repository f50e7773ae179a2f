"""Llama, and what vLLM runs by the same layers: Mistral, SmolLM, Phi-3, ERNIE 4.5 and others."""

from __future__ import annotations

from typing import Any

from qm_vllm_patches.decoder import DecoderView, sequential_view

ARCHITECTURES = (
    "LlamaForCausalLM", "LLaMAForCausalLM", "InternLM3ForCausalLM", "IQuestCoderForCausalLM",
    "TeleChat3ForCausalLM", "MistralForCausalLM", "Ministral3ForCausalLM", "Phi3ForCausalLM",
    "Ernie4_5ForCausalLM",
)


def view(model: Any) -> DecoderView:
    """View of vLLM's ``LlamaForCausalLM`` or a class derived from it."""
    return sequential_view(model)
