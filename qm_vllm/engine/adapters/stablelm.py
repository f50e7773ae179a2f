"""StableLM: layers return the states behind them, and part of a head is turned."""

from __future__ import annotations

from typing import Any

from qm_vllm_patches.decoder import DecoderView, sequential_view

ARCHITECTURES = ("StableLmForCausalLM", "StablelmForCausalLM")


def view(model: Any) -> DecoderView:
    """View of a model of vLLM's with one of these names."""
    return sequential_view(model, complete=True)
