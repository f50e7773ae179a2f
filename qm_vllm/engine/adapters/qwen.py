"""Qwen2 and Qwen3 (dense): Llama's layer order, with biases or a norm on queries and keys."""

from __future__ import annotations

from typing import Any

from qm_vllm_patches.decoder import DecoderView, sequential_view

ARCHITECTURES = ("Qwen2ForCausalLM", "Qwen3ForCausalLM")


def view(model: Any) -> DecoderView:
    """View of a model of vLLM's with one of these names."""
    return sequential_view(model)
