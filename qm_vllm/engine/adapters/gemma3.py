"""Gemma 3 (text): sliding-window layers between full ones."""

from __future__ import annotations

from typing import Any

from qm_vllm_patches.decoder import DecoderView, sequential_view

ARCHITECTURES = ("Gemma3ForCausalLM",)
PREFILL_ONLY = True


def view(model: Any) -> DecoderView:
    """View of a vLLM ``Gemma3ForCausalLM``."""
    return sequential_view(model, sliding=True)
