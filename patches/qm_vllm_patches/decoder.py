"""A uniform look at a loaded decoder: its embedding, its layers, their attention parts.

What a family of models needs beyond :func:`sequential_view` stands in ``qm_vllm/engine/adapters``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from qm_vllm_patches.fused_ops import FORWARD, fused_forwards


class UnsupportedDecoder(ValueError):
    """The served model cannot be run densely; the message says why."""


@dataclass(frozen=True)
class AttentionShape:
    """One layer's attention in plain numbers, of this rank.

    Attributes:
        name: what vLLM calls the layer, for its KV cache.
        scale: of the logits.
        sliding_window: newest positions that a query sees, its own included; None: all.
        soft_cap: c of ``c tanh(logits / c)``; 0: none.
    """

    name: str
    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float
    sliding_window: int | None = None
    soft_cap: float = 0.0

    @classmethod
    def of(cls, attn: Any) -> AttentionShape:
        """Of a vLLM attention layer."""
        return cls(
            attn.layer_name, attn.num_heads, attn.num_kv_heads, attn.head_size,
            float(attn.impl.scale), attn.sliding_window,
            float(getattr(attn.impl, "logits_soft_cap", None) or 0.0),
        )


@dataclass(frozen=True)
class LayerView:
    """One decoder layer called as ``run(positions, hidden, residual)``.

    Attributes:
        block: holds the attention layer and its rotary embedding; both are replaced for the moment
            of a dense pass (:meth:`borrowed`).
        module, rotary: these two, as vLLM made them.
        fused: modules that answer with the given forward for that moment.
    """

    run: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    block: nn.Module
    attn: AttentionShape
    module: Any
    rotary: Any
    fused: list[tuple[Any, Callable[..., Any]]] = field(default_factory=list)

    @property
    def sliding_window(self) -> int | None:
        """Newest positions that a query sees, its own included; None: all."""
        return self.attn.sliding_window

    @contextmanager
    def borrowed(self, attn: nn.Module, rotary: nn.Module) -> Iterator[None]:
        """Let ``attn`` and ``rotary`` answer for the layer's own; restored on any exit."""
        modules = self.block._modules
        own = modules["attn"], modules["rotary_emb"]
        forwards = [getattr(module, FORWARD) for module, _ in self.fused]
        modules["attn"], modules["rotary_emb"] = attn, rotary
        for module, forward in self.fused:
            setattr(module, FORWARD, forward)
        try:
            yield
        finally:
            for (module, _), forward in zip(self.fused, forwards, strict=True):
                setattr(module, FORWARD, forward)
            modules["attn"], modules["rotary_emb"] = own


@dataclass(frozen=True)
class DecoderView:
    """The parts of a decoder that the dense pass uses; weights are shared, never copied."""

    embed: Callable[[torch.Tensor], torch.Tensor]
    layers: list[LayerView]


def sequential_view(model: Any, *, sliding: bool = False) -> DecoderView:
    """View of a model whose ``model.layers[i]`` takes (positions, hidden_states, residual).

    Args:
        sliding: sliding-window layers are allowed (the prefill delivery alone can use them).

    Raises:
        UnsupportedDecoder: the attention has a feature that the dense pass does not honour.
    """
    decoder = model.model
    layers = []
    for index, layer in enumerate(decoder.layers):
        if type(layer).__name__ == "PPMissingLayer":
            raise UnsupportedDecoder("pipeline parallelism is not supported; use one stage")
        block = layer.self_attn
        for part in ("attn", "rotary_emb"):
            if part not in block._modules:
                raise UnsupportedDecoder(
                    f"layer {index} of {type(model).__name__} has no self_attn.{part}"
                )
        impl = block.attn.impl
        for feature, label in (
            ("alibi_slopes", "ALiBi"), ("sinks", "attention sinks"),
            ("logits_soft_cap", "a logits soft cap"),
        ):
            value = getattr(impl, feature, None)
            if value is not None and not (isinstance(value, (int, float)) and value == 0):
                raise UnsupportedDecoder(
                    f"layer {index} uses {label}, which the dense pass does not honour"
                )
        if block.attn.sliding_window is not None and not sliding:
            raise UnsupportedDecoder(f"layer {index} uses a sliding window")
        if getattr(block, "dual_chunk_attention_config", None):
            raise UnsupportedDecoder("dual chunk attention is not supported")
        if getattr(layer, "ada_rms_norm_t_cond", None) is not None:
            raise UnsupportedDecoder("time-conditioned norms are not supported")
        layers.append(LayerView(
            layer.forward, block, AttentionShape.of(block.attn), block.attn, block.rotary_emb,
            fused_forwards(layer),
        ))
    return DecoderView(model.embed_input_ids, layers)


def embedding_view(model: Any) -> DecoderView | None:
    """The token embeddings alone, of a model whose layers are not known; None if it has none."""
    try:
        return DecoderView(model.embed_input_ids, [])
    except Exception:  # whatever a model's own attributes raise
        return None
