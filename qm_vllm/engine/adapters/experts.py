"""Mixtures of experts on one rank: experts look around in vLLM's forward context."""

from __future__ import annotations

from typing import Any

from qm_vllm_patches.decoder import DecoderView, sequential_view

ARCHITECTURES = (
    "MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM", "OlmoeForCausalLM",
    "Glm4MoeForCausalLM", "Ernie4_5_MoeForCausalLM",
)


def view(model: Any) -> DecoderView:
    """View of a model of vLLM's with one of these names."""
    return sequential_view(model, in_context=True)
