"""EXAONE 4: norms behind attention and MLP, and layers return the states behind them."""

from __future__ import annotations

from typing import Any

from qm_vllm_patches.decoder import DecoderView, sequential_view

ARCHITECTURES = ("Exaone4ForCausalLM",)


def view(model: Any) -> DecoderView:
    """View of a model of vLLM's with one of these names."""
    return sequential_view(model, complete=True)
