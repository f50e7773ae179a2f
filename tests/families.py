"""Tiny random decoders of many families, made in memory: one list for every test of models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

LAYERS = 6
COMMON: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 8192, "initializer_range": 0.12,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}
SLIDING = [
    "full_attention" if layer in (2, 4) else "sliding_attention" for layer in range(LAYERS)
]
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 256,
}
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": 2048,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-3 rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama yarn": ("Llama", {"rope_parameters": YARN}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral sliding": ("Mistral", {"sliding_window": 64}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-moe": (
        "Qwen3Moe", {"head_dim": 32, **EXPERTS, "decoder_sparse_step": 1, "norm_topk_prob": True}
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "phi-3": ("Phi3", {}),
    "ernie-4.5": ("Ernie4_5", {"head_dim": 32}),
    "gemma": ("Gemma", {"head_dim": 32}),
    "glm-4": ("Glm4", {"head_dim": 32}),
    "nemotron": ("Nemotron", {"partial_rotary_factor": 0.5}),
    "apertus": ("Apertus", {}),
    "stablelm": ("StableLm", {}),
    "cohere": ("Cohere", {}),
    "exaone-4": ("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * LAYERS}),
    "qwen2-moe": ("Qwen2Moe", {
        **EXPERTS, "decoder_sparse_step": 1, "norm_topk_prob": True,
        "shared_expert_intermediate_size": 96,
    }),
    "olmoe": ("Olmoe", {**EXPERTS, "norm_topk_prob": False}),
    "glm-4-moe": ("Glm4Moe", {
        "head_dim": 32, "moe_intermediate_size": 64, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    }),
    "ernie-4.5-moe": ("Ernie4_5_Moe", {
        "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64,
        "moe_num_shared_experts": 1, "moe_layer_start_index": 1,
    }),
    "olmo-2": ("Olmo2", {}),
    "starcoder2": ("Starcoder2", {"sliding_window": None}),
    "seed-oss": ("SeedOss", {"head_dim": 32}),
    "glm": ("Glm", {"head_dim": 32}),
    "phi": ("Phi", {}),
    "granite": ("Granite", {
        "attention_multiplier": 0.18, "logits_scaling": 2.0, "embedding_multiplier": 3.0,
        "residual_multiplier": 0.6,
    }),
    "smollm3": ("SmolLM3", {}),
    "gemma-2": (
        "Gemma2", {"head_dim": 32, "sliding_window": 64, "query_pre_attn_scalar": 32,
                   "layer_types": SLIDING},
    ),
    "gemma-3": (
        "Gemma3", {"head_dim": 32, "sliding_window": 64, "query_pre_attn_scalar": 32,
                   "layer_types": SLIDING},
    ),
}
"""Name to the class prefix in transformers and what its configuration has beside the common."""

NATIVE_ONLY: dict[str, str] = {
    "mistral sliding": "sliding window",
    "gemma-2": "has no adapter",
    "gemma-3": "sliding-window layers",
}
"""Families whose layers are not run in the model, and what the reason says. All others are."""


def build(family: str, seed: int, **changes: Any) -> Any:
    """A random model of the family; ``changes`` are of its configuration."""
    import torch
    import transformers

    prefix, own = FAMILIES[family]
    name = {"Gemma3": "Gemma3TextConfig"}.get(prefix, f"{prefix}Config")
    config = getattr(transformers, name)(**{**COMMON, **own, **changes})
    make: Callable[[Any], Any] = getattr(transformers, f"{prefix}ForCausalLM")
    torch.manual_seed(seed)
    return make(config).eval()


def make_model(family: str, folder: Path, seed: int = 0) -> Path:
    """Save a random model of the family and return its folder."""
    import torch

    model = build(family, seed)
    if family.startswith("gemma"):
        # Tied embeddings of this size would echo the last token, whatever the layers say.
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(0.1)
    target = folder / family.replace(" ", "-")
    model.save_pretrained(target)
    return target
