"""Decoder families whose layers can be run densely by the plug-in, by architecture name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qm_vllm.engine.adapters import gemma, llama, qwen
from qm_vllm_patches.decoder import DecoderView, UnsupportedDecoder, embedding_view

FAMILIES: dict[str, Callable[[Any], DecoderView]] = {
    **dict.fromkeys(llama.ARCHITECTURES, llama.view),
    **dict.fromkeys(qwen.ARCHITECTURES, qwen.view),
    **dict.fromkeys(gemma.ARCHITECTURES, gemma.view),
}

PREFILL_ONLY = frozenset(gemma.ARCHITECTURES)
"""Families that can be scored but not injected: a sliding window counts positions, and kept
tokens are fewer than the positions that they span."""

__all__ = [
    "FAMILIES",
    "PREFILL_ONLY",
    "DecoderView",
    "UnsupportedDecoder",
    "embedding_view",
    "view_decoder",
]


def view_decoder(model: Any) -> DecoderView:
    """Look into a loaded vLLM model.

    Raises:
        UnsupportedDecoder: no adapter, or the model has a feature that the dense pass lacks.
    """
    name = type(model).__name__
    if name not in FAMILIES:
        raise UnsupportedDecoder(
            f"{name} has no adapter (available: {', '.join(sorted(FAMILIES))}); "
            'use delivery="auto" or "native", or "prefill", which scores the token embeddings'
        )
    return FAMILIES[name](model)
