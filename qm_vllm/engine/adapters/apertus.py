"""Apertus: norms of other names, and an activation of its own."""

from __future__ import annotations

from typing import Any

from qm_vllm_patches.decoder import DecoderView, sequential_view

ARCHITECTURES = ("ApertusForCausalLM",)


def view(model: Any) -> DecoderView:
    """View of a model of vLLM's with one of these names."""
    return sequential_view(model)
