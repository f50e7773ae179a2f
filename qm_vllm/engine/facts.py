"""What the plug-in has to know of the engine it lives in, and what it refuses."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch

from qm_vllm.engine.adapters import FAMILIES, PREFILL_ONLY
from qm_vllm.engine.company import refuse_company
from qm_vllm.engine.memory import DecoderShape
from qm_vllm.engine.requests.chat_turns import ChatTurns
from qm_vllm.engine.requests.hints import Hints
from qm_vllm.processor import computes_bf16
from qm_vllm.special_tokens import special_ids
from qm_vllm_patches.settings import (
    CacheFacts,
    EngineSettings,
    tokenizer_of,
    trained_length,
)

ENCODE_FROM = 16384
"""Of an accelerator. On an H200 the encoder, which runs eagerly, took 1.9 times as long at 2,048
tokens, as long at 8,192, and 0.79 times at 32,768 (``benchmarks/results/h200/prefill.json``)."""

MATRIX_UNITS_FROM = 4096
"""Of a CPU that multiplies bfloat16: there vLLM's own prefill is fast, and the encoder, which uses
the same attention kernel, has little to save (``benchmarks/results/xeon-amx/first_token.json``)."""


@dataclass(frozen=True)
class EngineFacts:
    """Settings of the running engine, read once at start."""

    block_size: int
    block_bytes: int
    """Bytes of one KV block over all layers and all ranks, KV heads that several have counted at
    each of them."""
    num_layers: int
    special_ids: frozenset[int]
    model_key: str
    """Hash over what decides the KV of a prompt: model, revision, dtypes."""
    no_inject: str | None
    """Why the inject delivery is impossible here; None if it is possible."""
    has_adapter: bool
    max_model_len: int
    trained_length: int
    """Positions that the model was trained for."""
    shape: DecoderShape
    chat: ChatTurns
    prefix_caching: bool = True
    no_native: str | None = None
    """Why the native delivery is impossible here; None if it is possible."""
    windows: tuple[int | None, ...] = (None,)
    """Of each KV-cache group whose older blocks are let go, its sliding window, else None."""
    keep_less: tuple[bool, ...] = (False,)
    """Of each KV-cache group, whether its layers keep less than those that look things up."""
    layer_share: float = 0.0
    """Of all entries, what layers that look things up get; 0: all keep as many."""
    in_flight_tokens: int = 2048
    """Of the steps that run at once, at most; two where vLLM schedules ahead."""
    encode_from: int = 0
    """Tokens from which on the encoder takes no longer than vLLM's own prefill."""
    hints: Hints = field(default_factory=Hints)
    """Reads what will be asked of a prompt."""

    @property
    def whole_groups(self) -> int:
        """KV-cache groups whose layers see all positions."""
        return max(1, sum(window is None for window in self.windows))

    def beyond(self, tokens: int) -> bool:
        """Whether a prompt of so many tokens is longer than vLLM itself reads; one is sampled."""
        return tokens >= self.max_model_len


def decoder_shape(settings: EngineSettings) -> DecoderShape:
    """One rank's part of the served decoder."""
    return DecoderShape(
        hidden_size=settings.hidden_size, num_layers=settings.num_layers,
        num_heads=settings.num_heads, num_kv_heads=settings.num_kv_heads,
        head_size=settings.head_size,
        value_bytes=settings.value_bytes, cache_bytes=settings.cache_bytes,
        stashes=settings.quantised,
    )


def refuse(settings: EngineSettings) -> str | None:
    """A sentence if the plug-in cannot work in this engine at all, else None."""
    if settings.pipeline_parallel > 1:
        return "pipeline parallelism is not supported; set pipeline_parallel_size=1"
    if settings.context_parallel > 1:
        return (
            "context parallelism is not supported; set decode_context_parallel_size=1 and "
            "prefill_context_parallel_size=1"
        )
    if settings.runner != "generate":
        return f"runner {settings.runner!r} is not supported; only text generation is"
    if settings.uses_mla:
        return "multi-head latent attention (MLA) is not supported"
    return refuse_company(settings)


def read_facts(
    settings: EngineSettings, cache: CacheFacts, layer_share: float = 0.0
) -> EngineFacts:
    """Collect :class:`EngineFacts` in the scheduler's process.

    Args:
        layer_share: what was wanted; that it is so, the cache shows.
    """
    tokenizer = tokenizer_of(settings)
    return EngineFacts(
        block_size=settings.block_size,
        block_bytes=cache.block_bytes * settings.tensor_parallel,
        num_layers=int(settings.text_config.num_hidden_layers),
        special_ids=_special_ids(settings.text_config, tokenizer),
        model_key=hashlib.sha256(repr(settings.identity).encode()).hexdigest(),
        no_inject=no_inject(settings, cache),
        has_adapter=settings.architecture in FAMILIES,
        max_model_len=settings.max_model_len,
        trained_length=trained_length(settings.text_config, settings.max_model_len),
        shape=decoder_shape(settings),
        chat=ChatTurns(tokenizer),
        prefix_caching=settings.prefix_caching,
        no_native=no_native(settings, cache),
        windows=cache.windows,
        keep_less=cache.keep_less,
        layer_share=layer_share if any(cache.keep_less) else 0.0,
        in_flight_tokens=settings.in_flight_tokens,
        encode_from=_encode_from(settings),
        hints=Hints(tokenizer),
    )


def _encode_from(settings: EngineSettings) -> int:
    if settings.device != "cpu":
        return ENCODE_FROM
    halves = settings.dtype in (torch.bfloat16, torch.float16)
    return MATRIX_UNITS_FROM if halves and computes_bf16() else 0


def no_inject(settings: EngineSettings, cache: CacheFacts) -> str | None:
    """Why the inject delivery is impossible in this engine; None if it is possible."""
    if settings.architecture not in FAMILIES:
        why = (
            f"{settings.architecture} has no adapter (available: {', '.join(sorted(FAMILIES))})"
        )
    elif settings.architecture in PREFILL_ONLY:
        why = f"{settings.architecture} has sliding-window layers"
    elif any(cache.keep_less):
        why = "layers that look things up keep more than the others (layer_share)"
    elif cache.groups != 1:
        why = f"the model has {cache.groups} KV-cache groups (hybrid attention)"
    elif settings.speculative:
        return 'speculative decoding is on; use delivery="prefill"'
    elif settings.is_moe and (settings.expert_parallel or settings.data_parallel > 1):
        why = "mixture-of-experts runs with expert or data parallelism"
    elif settings.has_lora:
        why = "LoRA is on"
    else:
        return None
    return f'{why}; use delivery="auto", "native" or "prefill"'


KEYS_AND_VALUES = frozenset({"FullAttentionSpec", "SlidingWindowSpec", "LayerGroupSpec"})
"""Names for caches of keys and values, one pair a token: vLLM's, and ours."""


def no_native(settings: EngineSettings, cache: CacheFacts) -> str | None:
    """Why the native delivery is impossible in this engine; None if it is possible.

    What the workers find out about the model itself comes with their first message.
    """
    others = sorted(set(cache.kinds) - KEYS_AND_VALUES)
    if others:
        return f"layers keep something else than keys and values ({', '.join(others)})"
    if any(size != settings.block_size for size in cache.block_sizes):
        return f"KV-cache groups have blocks of {sorted(set(cache.block_sizes))} tokens"
    return no_native_settings(settings)


def no_native_settings(settings: EngineSettings) -> str | None:
    """The part of :func:`no_native` that is known before there is a KV cache."""
    if settings.quantised:
        return "the KV cache is quantised"
    if settings.speculative:
        return "speculative decoding is on"
    if settings.full_graphs:
        return "cudagraph_mode=FULL hides prefills; use FULL_AND_PIECEWISE, vLLM's default"
    return None


def _special_ids(text_config: Any, tokenizer: Any) -> frozenset[int]:
    if tokenizer is not None:
        return special_ids(tokenizer)
    found: set[int] = set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(text_config, name, None)
        found.update([value] if isinstance(value, int) else value or [])
    return frozenset(found)
