"""Settings of engines that need not be started, and one rank's decoders of known models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from qm_vllm.engine.facts import EngineFacts, decoder_shape
from qm_vllm.engine.requests.chat_turns import ChatTurns
from qm_vllm_patches.settings import EngineSettings


def settings(**changes: Any) -> EngineSettings:
    """An engine of a small Llama that the plug-in can work in."""
    values: dict[str, Any] = {
        "options": {}, "architecture": "LlamaForCausalLM",
        "text_config": SimpleNamespace(
            architectures=["LlamaForCausalLM"], num_hidden_layers=6, hidden_size=128,
            num_attention_heads=4, num_key_value_heads=2, vocab_size=512,
        ),
        "runner": "generate",
        "hidden_size": 128, "num_layers": 6, "num_heads": 4, "num_kv_heads": 2, "head_size": 32,
        "dtype": None,
        "value_bytes": 4, "cache_bytes": 4, "quantised": False, "block_size": 32,
        "max_model_len": 4096, "identity": ("tiny",),
        "pipeline_parallel": 1, "context_parallel": 1, "data_parallel": 1,
        "expert_parallel": False, "is_moe": False, "uses_mla": False, "has_lora": False,
        "speculative": False, "prefix_caching": True,
    }
    return EngineSettings(**values | changes)


def facts(**changes: Any) -> EngineFacts:
    """What the plug-in knows of such an engine."""
    made = settings()
    values: dict[str, Any] = {
        "block_size": made.block_size, "block_bytes": 1 << 15, "num_layers": made.num_layers,
        "special_ids": frozenset(), "model_key": "tiny", "max_model_len": made.max_model_len,
        "trained_length": made.max_model_len, "no_inject": None, "has_adapter": True,
        "shape": decoder_shape(made), "chat": ChatTurns(None), "prefix_caching": True,
    }
    return EngineFacts(**values | changes)
