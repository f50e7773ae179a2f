"""GLM-4: half of a head is turned, in pairs of neighbours, and each part's result has a norm."""

from __future__ import annotations

from typing import Any

from qm_vllm_patches.decoder import DecoderView, sequential_view

ARCHITECTURES = ("Glm4ForCausalLM",)


def view(model: Any) -> DecoderView:
    """View of a model of vLLM's with one of these names."""
    return sequential_view(model)
