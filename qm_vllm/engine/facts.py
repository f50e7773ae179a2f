"""What the plug-in has to know of the engine it lives in, and what it refuses."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qm_vllm.engine.adapters import FAMILIES, PREFILL_ONLY
from qm_vllm.engine.requests.chat_turns import ChatTurns
from qm_vllm_patches.log import get_logger

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = get_logger(__name__)


@dataclass(frozen=True)
class EngineFacts:
    """Settings of the running engine, read once at start."""

    block_size: int
    block_bytes: int
    """Bytes of one KV block over all layers of this rank."""
    num_layers: int
    special_ids: frozenset[int]
    model_key: str
    """Hash over what decides the KV of a prompt: model, revision, dtypes."""
    no_inject: str | None
    """Why the inject delivery is impossible here; None if it is possible."""
    has_adapter: bool
    max_source_tokens: int
    """Longest prompt that is compressed, and the tokens of all jobs that run at once."""
    chat: ChatTurns


def refuse(config: VllmConfig) -> str | None:
    """A sentence if the plug-in cannot work in this engine at all, else None."""
    parallel, model = config.parallel_config, config.model_config
    if parallel.pipeline_parallel_size > 1:
        return "pipeline parallelism is not supported; set pipeline_parallel_size=1"
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            return f"context parallelism is not supported; set {name}=1"
    if model.runner_type != "generate":
        return f"runner {model.runner_type!r} is not supported; only text generation is"
    if model.use_mla:
        return "multi-head latent attention (MLA) is not supported"
    experts = getattr(model, "is_moe", False)
    if experts and (parallel.enable_expert_parallel or parallel.data_parallel_size > 1):
        return "mixture-of-experts with expert or data parallelism is not supported"
    if config.lora_config is not None:
        return "LoRA is not supported yet; start without enable_lora"
    return None


def read_facts(
    config: VllmConfig, kv_cache_config: KVCacheConfig, max_source_tokens: int | None = None
) -> EngineFacts:
    """Collect :class:`EngineFacts` in the scheduler's process."""
    model, text = config.model_config, config.model_config.hf_text_config
    groups = kv_cache_config.kv_cache_groups
    has_adapter = model.architecture in FAMILIES
    no_inject = None
    if not has_adapter:
        no_inject = (
            f"{model.architecture} has no adapter (available: {', '.join(sorted(FAMILIES))})"
        )
    elif model.architecture in PREFILL_ONLY:
        no_inject = f"{model.architecture} has sliding-window layers"
    elif len(groups) != 1:
        no_inject = f"the model has {len(groups)} KV-cache groups (hybrid attention)"
    elif config.speculative_config is not None:
        no_inject = "speculative decoding is on"
    if no_inject:
        no_inject += '; use delivery="prefill"'
    tokenizer = _tokenizer(model)
    chat = ChatTurns(tokenizer)
    dtype = config.cache_config.cache_dtype
    identity = (model.model, model.revision, str(model.dtype), dtype, model.quantization)
    return EngineFacts(
        block_size=config.cache_config.block_size,
        block_bytes=sum(
            group.kv_cache_spec.page_size_bytes * len(group.layer_names) for group in groups
        ),
        num_layers=int(text.num_hidden_layers),
        special_ids=_special_ids(model, tokenizer),
        max_source_tokens=max_source_tokens or model.max_model_len,
        chat=chat,
        model_key=hashlib.sha256(repr(identity).encode()).hexdigest(),
        no_inject=no_inject,
        has_adapter=has_adapter,
    )


def _tokenizer(model: Any) -> Any:
    """The served model's tokenizer, or None where there is none."""
    if model.skip_tokenizer_init:
        return None
    try:
        from vllm.tokenizers import cached_tokenizer_from_config

        return cached_tokenizer_from_config(model)
    except Exception as error:
        logger.warning("qm_vllm: no tokenizer here (%s); using bos and eos only", error)
        return None


def _special_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    if tokenizer is not None:
        return frozenset(tokenizer.all_special_ids)
    found: set[int] = set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(model.hf_text_config, name, None)
        found.update([value] if isinstance(value, int) else value or [])
    return frozenset(found)
