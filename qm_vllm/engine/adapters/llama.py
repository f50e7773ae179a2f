"""Llama and the models that share its layer: Mistral, SmolLM."""

from __future__ import annotations

from typing import Any

from qm_vllm_patches.decoder import DecoderView, sequential_view

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")


def view(model: Any) -> DecoderView:
    """View of a vLLM ``LlamaForCausalLM`` or ``MistralForCausalLM``."""
    return sequential_view(model)
