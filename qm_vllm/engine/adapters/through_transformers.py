"""Models that vLLM serves through transformers' own layers, as OLMo 2, SmolLM3 and StarCoder2."""

from __future__ import annotations

from typing import Any

from qm_vllm_patches.decoder import DecoderView
from qm_vllm_patches.transformers_view import transformers_view

ARCHITECTURES = (
    "TransformersForCausalLM", "ArceeForCausalLM", "GlmForCausalLM", "OlmoForCausalLM",
    "Olmo2ForCausalLM", "Olmo3ForCausalLM", "PhiForCausalLM", "SeedOssForCausalLM",
    "SmolLM3ForCausalLM", "Starcoder2ForCausalLM",
)


def view(model: Any) -> DecoderView:
    """View of vLLM's ``TransformersForCausalLM``, by which all of these are run."""
    return transformers_view(model)
