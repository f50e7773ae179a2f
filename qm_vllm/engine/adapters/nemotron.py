"""Nemotron: layer norms with a one added to their weights, half of a head turned."""

from __future__ import annotations

from typing import Any

from qm_vllm_patches.decoder import DecoderView, sequential_view

ARCHITECTURES = ("NemotronForCausalLM",)


def view(model: Any) -> DecoderView:
    """View of a model of vLLM's with one of these names."""
    return sequential_view(model)
