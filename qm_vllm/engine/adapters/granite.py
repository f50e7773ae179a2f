"""Granite: layers return the states behind them, and the embeddings are multiplied."""

from __future__ import annotations

from typing import Any

import torch

from qm_vllm_patches.decoder import DecoderView, sequential_view

ARCHITECTURES = ("GraniteForCausalLM",)


def view(model: Any) -> DecoderView:
    """View of a vLLM ``GraniteForCausalLM``."""
    def embed(ids: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = model.embed_input_ids(ids)
        return states * model.config.embedding_multiplier

    return sequential_view(model, complete=True, embed=embed)
