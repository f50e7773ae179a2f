"""Cohere (Command R): attention and MLP read the same norm, and layers return whole states."""

from __future__ import annotations

from typing import Any

from qm_vllm_patches.decoder import DecoderView, sequential_view

ARCHITECTURES = ("CohereForCausalLM", "Cohere2ForCausalLM")


def view(model: Any) -> DecoderView:
    """View of a model of vLLM's with one of these names."""
    return sequential_view(model, complete=True)
