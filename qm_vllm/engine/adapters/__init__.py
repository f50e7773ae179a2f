"""Decoder families whose layers can be run densely by the plug-in, by architecture name.

A family is a file: the names of its architectures (that of a model's ``config.json``, and of vLLM's
class where it is another), and how vLLM's model is looked at. What a file claims is compared with
the model's own forward whenever one is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qm_vllm.engine.adapters import (
    apertus,
    cohere,
    exaone,
    experts,
    gemma,
    gemma3,
    glm,
    granite,
    llama,
    nemotron,
    qwen,
    stablelm,
    through_transformers,
)
from qm_vllm_patches.decoder import DecoderView, UnsupportedDecoder, embedding_view

FILES: tuple[Any, ...] = (
    llama, qwen, gemma, gemma3, glm, nemotron, apertus, granite, stablelm, cohere, exaone, experts,
    through_transformers,
)

FAMILIES: dict[str, Callable[[Any], DecoderView]] = {
    name: file.view for file in FILES for name in file.ARCHITECTURES
}

PREFILL_ONLY = frozenset(
    name for file in FILES if getattr(file, "PREFILL_ONLY", False) for name in file.ARCHITECTURES
)
"""Families that can be scored but not injected: a sliding window counts positions, and kept
tokens are fewer than the positions that they span."""

__all__ = [
    "FAMILIES",
    "FILES",
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
