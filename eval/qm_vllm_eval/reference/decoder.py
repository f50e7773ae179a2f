"""The layers of a Llama-like transformers model, run by hand over any rows and any KV.

Needs only module weights and the rotary embedding, so it works alike with transformers 4 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


class UnsupportedModel(ValueError):
    """The model's layers are not built in the way that this harness knows."""


class Decoder:
    """Read-only view of a causal language model. Tensors: B rows, T tokens, H heads, d head_dim.

    Raises:
        UnsupportedModel: another architecture than :data:`ARCHITECTURES`, or sliding-window
            layers.
    """

    def __init__(self, model: Any) -> None:
        name = type(model).__name__
        if name not in ARCHITECTURES:
            raise UnsupportedModel(
                f"{name} is not supported by the reference engine; it knows "
                f"{', '.join(ARCHITECTURES)}"
            )
        config = model.config
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"} or _sliding(config):
            raise UnsupportedModel(f"{name} with sliding-window layers is not supported")
        self.config, self.model, self.core = config, model, model.model
        self.layers = self.core.layers
        self.num_layers = len(self.layers)
        self.num_heads = int(config.num_attention_heads)
        self.num_kv_heads = int(config.num_key_value_heads)
        self.head_dim = int(self.layers[0].self_attn.head_dim)
        self.dtype = self.core.embed_tokens.weight.dtype
        self.device = self.core.embed_tokens.weight.device

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one position in all layers, in the model's dtype."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def embed(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Embeddings [..., D] of token ids [...]."""
        rows = torch.as_tensor(ids, dtype=torch.long, device=self.device)
        embedded: Tensor = self.core.embed_tokens(rows)
        return embedded

    def project(self, layer: int, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, d], keys and values [B, KVH, T, d] before rotation.

        Args:
            states: [B, T, D], the states that enter the layer.
        """
        block = self.layers[layer]
        attn, normed = block.self_attn, block.input_layernorm(states)
        shape = (*states.shape[:2], -1, self.head_dim)
        query, key, value = (
            getattr(attn, f"{part}_proj")(normed).view(shape) for part in ("q", "k", "v")
        )
        if hasattr(attn, "q_norm"):
            query, key = attn.q_norm(query), attn.k_norm(key)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, 1, T, d] of positions [B, T]."""
        probe = torch.empty(0, dtype=self.dtype, device=self.device)
        cos, sin = self.core.rotary_emb(probe, positions.to(self.device))
        return cos[:, None], sin[:, None]

    def finish_layer(self, layer: int, states: Tensor, attended: Tensor) -> Tensor:
        """The rest of a layer after attention: [B, T, D].

        Args:
            states: [B, T, D], the states that entered the layer.
            attended: [B, H, T, d].
        """
        block = self.layers[layer]
        merged = attended.transpose(1, 2).reshape(*states.shape[:2], -1)
        states = states + block.self_attn.o_proj(merged)
        out: Tensor = states + block.mlp(block.post_attention_layernorm(states))
        return out

    def logits(self, states: Tensor) -> Tensor:
        """Logits [..., V] in float32 of the states after the last layer."""
        out: Tensor = self.model.lm_head(self.core.norm(states)).float()
        return out

    def run(
        self, states: Tensor, first: int, last: int, positions: Tensor | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]], list[Tensor]]:
        """Layers [first, last) over one whole sequence, causally.

        Args:
            states: [T, D]. positions: [T], default 0..T-1.

        Returns:
            the states [T, D] after it; per layer the keys *before rotation* and the values,
            [KVH, T, d]; per layer the states that entered it.
        """
        count = states.shape[0]
        if positions is None:
            positions = torch.arange(count, device=self.device)
        cos, sin = self.angles(positions[None])
        groups = self.num_heads // self.num_kv_heads
        rows, kv, entering = states[None], [], []
        for layer in range(first, last):
            entering.append(rows[0])
            query, key, value = self.project(layer, rows)
            attended = scaled_dot_product_attention(
                rotate(query, cos, sin),
                rotate(key, cos, sin).repeat_interleave(groups, 1),
                value.repeat_interleave(groups, 1),
                is_causal=True,
            )
            kv.append((key[0], value[0]))
            rows = self.finish_layer(layer, rows, attended)
        return rows[0], kv, entering

    def place(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Keys [KVH, T, d] rotated to positions [T]."""
        cos, sin = self.angles(positions[None])
        return rotate(keys, cos[0], sin[0])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [..., T, d] (RoPE, Su et al. 2021, halves layout)."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def _sliding(config: Any) -> bool:
    window = getattr(config, "sliding_window", None)
    return bool(window) and getattr(config, "use_sliding_window", True) is not False
