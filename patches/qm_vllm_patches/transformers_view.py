"""Models that vLLM serves through transformers' own layers.

Such a layer turns queries and keys in its own code, by cosines and sines that it is handed. It is
handed those of no turn, and they are turned afterwards; how a layer would have done it is found out
by trying.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from qm_vllm_patches.decoder import (
    AttentionShape,
    DecoderView,
    LayerView,
    Run,
    UnsupportedDecoder,
    refuse_features,
)
from qm_vllm_patches.fused_ops import CACHE, fused_forwards
from qm_vllm_patches.settings import trained_length

PLACES = (0, 1, 5, 30)
"""Positions at which a layer is tried."""
CLOSE = {torch.float32: 1e-4}
CLOSE_ELSE = 3e-2
CHANGES = frozenset({"dynamic", "longrope"})
"""Kinds of rotary embeddings whose angles depend on how long a batch is."""


class TableRotary(nn.Module):
    """Turns rows by a table of angles.

    Args:
        table: [positions, R] float32, cosines and then sines; R numbers of a head are turned.
        halves: number i is paired with i + R/2, else neighbours are.
        head_size: numbers of a head.
    """

    def __init__(self, table: torch.Tensor, *, halves: bool, head_size: int) -> None:
        super().__init__()
        self.halves, self.head_size = halves, head_size
        self.register_buffer(CACHE, table, persistent=False)

    def forward(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows [T, heads * head_size], or [T, heads, head_size], turned."""
        rows = self.get_buffer(CACHE)[positions][:, None]
        return self._turned(query, rows), None if key is None else self._turned(key, rows)

    def _turned(self, rows: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        cos, sin = angles.chunk(2, -1)
        width = angles.shape[-1]
        heads = rows.view(rows.shape[0], -1, self.head_size)
        part = heads[..., :width].float()
        one, other = part.chunk(2, -1) if self.halves else (part[..., ::2], part[..., 1::2])
        turned = one * cos - other * sin, other * cos + one * sin
        joined = torch.cat(turned, -1) if self.halves else torch.stack(turned, -1).flatten(-2)
        return torch.cat((joined.to(rows.dtype), heads[..., width:]), -1).view(rows.shape)


def transformers_view(model: Any, *, in_context: bool = False) -> DecoderView:
    """View of a vLLM ``TransformersForCausalLM``.

    Args:
        in_context: as of :class:`DecoderView`.

    Raises:
        UnsupportedDecoder: its layers do something with positions that is not known here.
    """
    decoder = model.model
    rotary = getattr(decoder, "rotary_emb", None)
    if rotary is None or not hasattr(rotary, "inv_freq"):
        raise UnsupportedDecoder("the model's layers have no rotary embedding in common")
    kind = getattr(rotary, "rope_type", "default")
    if kind in CHANGES:
        raise UnsupportedDecoder(f"its rotary embedding ({kind}) depends on the batch")
    known = model.model_config
    table, longest = None, trained_length(known.hf_text_config, known.max_model_len)
    kinds: list[TableRotary] = []
    layers = []
    for index, layer in enumerate(decoder.layers):
        block = getattr(layer, "self_attn", None)
        if block is None or "attn" not in block._modules:
            raise UnsupportedDecoder(f"layer {index} has no self_attn with an attention of vLLM's")
        refuse_features(index, layer, block)
        shape = AttentionShape.of(block.attn)
        if table is None:
            table = _table(rotary, longest)
            kinds = [
                TableRotary(table, halves=halves, head_size=shape.head_size)
                for halves in (True, False)
            ]
        if shape.head_size != kinds[0].head_size:
            raise UnsupportedDecoder(f"layer {index} has heads of another size")
        layers.append(LayerView(
            _run(layer, table.shape[1]), block, shape, block.attn,
            _turn(index, block, rotary, kinds), fused_forwards(layer), late=True,
        ))
    return DecoderView(model.embed_input_ids, layers, in_context)


def _table(rotary: Any, longest: int) -> torch.Tensor:
    """[positions, R], multiplied and rounded as the module does it for a batch."""
    inverse = rotary.inv_freq.detach().float()
    angles = torch.arange(longest, device=inverse.device).float()[:, None] * inverse
    factor = float(getattr(rotary, "attention_scaling", 1.0))
    return torch.cat((angles.cos(), angles.sin()), -1) * factor


def _run(layer: Any, width: int) -> Run:
    def run(positions: torch.Tensor, states: torch.Tensor) -> tuple[torch.Tensor, None]:
        found = layer(
            states[None], attention_mask=None, position_ids=positions[None], use_cache=False,
            position_embeddings=_no_turn(states, width),
        )
        rows: torch.Tensor = found if isinstance(found, torch.Tensor) else found[0]
        return rows[0], None

    return run


def _no_turn(states: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [1, T, width] of angles of zero."""
    cos = states.new_ones(1, states.shape[0], width)
    return cos, torch.zeros_like(cos)


@torch.inference_mode()
def _turn(
    index: int, block: Any, rotary: Any, kinds: list[TableRotary]
) -> TableRotary | None:
    """What turns a layer's queries and keys; None: nothing does.

    Raises:
        UnsupportedDecoder: something that is not known here.
    """
    weight = next(block.parameters())
    generator = torch.Generator().manual_seed(index)
    size = block.config.hidden_size
    states = torch.randn(len(PLACES), size, generator=generator).to(weight)
    places = torch.tensor(PLACES, device=weight.device)
    with _heard(block) as heard:
        for angles in (
            _no_turn(states, 2 * rotary.inv_freq.shape[0]), rotary(states[None], places[None])
        ):
            block(hidden_states=states[None], position_embeddings=angles, attention_mask=None)
    plain, turned = heard
    if _close(plain, turned):
        return None
    for one in kinds:
        if _close(one(places, *plain), turned):
            return one
    raise UnsupportedDecoder(f"layer {index} does something with positions that is not known")


@contextmanager
def _heard(block: Any) -> Iterator[list[tuple[torch.Tensor, ...]]]:
    """Queries and keys that reach the attention of a block, which adds nothing."""
    heard: list[tuple[torch.Tensor, ...]] = []

    class Listener(nn.Module):
        def forward(self, query: torch.Tensor, key: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            heard.append((query.clone(), key.clone()))
            return torch.zeros_like(query)

    own = block._modules["attn"]
    block._modules["attn"] = Listener()
    try:
        yield heard
    finally:
        block._modules["attn"] = own


def _close(found: Any, wanted: Any) -> bool:
    return all(
        (one.float() - other.float()).norm()
        <= CLOSE.get(other.dtype, CLOSE_ELSE) * other.float().norm()
        for one, other in zip(found, wanted, strict=True)
    )
