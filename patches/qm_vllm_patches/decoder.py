"""A uniform look at a loaded decoder: its embedding, its layers, their attention parts.

What a family of models needs beyond :func:`sequential_view` stands in ``qm_vllm/engine/adapters``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from operator import attrgetter
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


Run = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
"""``run(positions, states)`` of rows [T, D]: two parts whose sum are the states behind the layer,
or these states and None. The rows that it is given may be written over."""


@dataclass(frozen=True)
class LayerView:
    """One decoder layer.

    Attributes:
        block: holds the attention layer and its rotary embedding; both are replaced for the moment
            of a dense pass (:meth:`borrowed`).
        module, rotary: these two, as vLLM made them. A layer that positions do not turn has no
            rotary embedding.
        fused: modules that answer with the given forward for that moment.
        late: the block leaves queries and keys unturned; the rotary embedding is for whoever
            answers for its attention.
    """

    run: Run
    block: nn.Module
    attn: AttentionShape
    module: Any
    rotary: Any
    fused: list[tuple[Any, Callable[..., Any]]] = field(default_factory=list)
    late: bool = False

    @property
    def sliding_window(self) -> int | None:
        """Newest positions that a query sees, its own included; None: all."""
        return self.attn.sliding_window

    @contextmanager
    def borrowed(self, attn: nn.Module, rotary: nn.Module | None) -> Iterator[None]:
        """Let ``attn`` and ``rotary`` answer for the layer's own; restored on any exit."""
        modules = self.block._modules
        taps = {"attn": attn}
        if not self.late and rotary is not None:
            taps["rotary_emb"] = rotary
        own = {name: modules[name] for name in taps}
        forwards = [getattr(module, FORWARD) for module, _ in self.fused]
        modules.update(taps)
        for module, forward in self.fused:
            setattr(module, FORWARD, forward)
        try:
            yield
        finally:
            for (module, _), forward in zip(self.fused, forwards, strict=True):
                setattr(module, FORWARD, forward)
            modules.update(own)


@dataclass(frozen=True)
class DecoderView:
    """The parts of a decoder that the dense pass uses; weights are shared, never copied.

    Attributes:
        in_context: layers look around in vLLM's forward context, as experts do.
    """

    embed: Callable[[torch.Tensor], torch.Tensor]
    layers: list[LayerView]
    in_context: bool = False


def sequential_view(
    model: Any, *, complete: bool = False, layers: str = "model.layers",
    attention: str = "self_attn", multiplier: float = 1.0,
    sliding: bool = False, in_context: bool = False,
) -> DecoderView:
    """View of a model whose layers take positions and hidden states, one after the other.

    Args:
        complete: a layer returns the states behind it; else a hidden part and a residual, which the
            next layer adds up.
        layers: where they are. attention: where a layer has what holds its attention and rotary
            embedding.
        multiplier: of the embeddings, where the model applies it outside of these.
        sliding: sliding-window layers are allowed (the prefill delivery alone can use them).
        in_context: as of :class:`DecoderView`.

    Raises:
        UnsupportedDecoder: the attention has a feature that the dense pass does not honour.
    """
    views = [
        _layer_view(model, index, layer, complete=complete, attention=attention, sliding=sliding)
        for index, layer in enumerate(attrgetter(layers)(model))
    ]
    def embed(ids: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = model.embed_input_ids(ids)
        return states if multiplier == 1 else states * multiplier

    return DecoderView(embed, views, in_context)


def _layer_view(
    model: Any, index: int, layer: Any, *, complete: bool, attention: str, sliding: bool
) -> LayerView:
    """Raises UnsupportedDecoder."""
    if type(layer).__name__ == "PPMissingLayer":
        raise UnsupportedDecoder("pipeline parallelism is not supported; use one stage")
    block = attrgetter(attention)(layer)
    for part in ("attn", "rotary_emb"):
        if block._modules.get(part) is None:
            raise UnsupportedDecoder(
                f"layer {index} of {type(model).__name__} has no {attention}.{part}"
            )
    refuse_features(index, layer, block, sliding=sliding)
    return LayerView(
        _run(layer, complete), block, AttentionShape.of(block.attn), block.attn, block.rotary_emb,
        fused_forwards(layer),
    )


def refuse_features(index: int, layer: Any, block: Any, *, sliding: bool = False) -> None:
    """Say what the dense pass does not honour.

    Args:
        index: of the layer. block: holds its attention. sliding: windows are allowed.

    Raises:
        UnsupportedDecoder: the layer has such a feature.
    """
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


def _run(layer: Any, complete: bool) -> Run:
    forward = layer.forward
    residual = {"residual": None} if "residual" in signature(forward).parameters else {}

    def run(
        positions: torch.Tensor, states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        found = forward(positions=positions, hidden_states=states, **residual)
        if not complete:
            hidden, rest = found
            return hidden, rest
        return (found if isinstance(found, torch.Tensor) else found[0]), None

    return run


def embedding_view(model: Any) -> DecoderView | None:
    """The token embeddings alone, of a model whose layers are not known; None if it has none."""
    try:
        return DecoderView(model.embed_input_ids, [])
    except Exception:  # whatever a model's own attributes raise
        return None
