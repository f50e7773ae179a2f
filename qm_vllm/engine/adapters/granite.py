"""Granite: layers return the states behind them, and the embeddings are multiplied."""

from __future__ import annotations

from typing import Any

from qm_vllm_patches.decoder import DecoderView, sequential_view

ARCHITECTURES = ("GraniteForCausalLM",)


def view(model: Any) -> DecoderView:
    """View of a vLLM ``GraniteForCausalLM``."""
    return sequential_view(
        model, complete=True, multiplier=float(model.config.embedding_multiplier)
    )
