"""One full prefill of a prompt, from which every method and ratio is served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qm_vllm_eval.reference.decoder import Decoder


@dataclass(eq=False)
class Prefill:
    """States and KV of N tokens. Causal, so the first n tokens are a prefill of their own.

    Attributes:
        ids: the N token ids.
        states: L + 1 tensors [N, D]: those that enter each layer, and those after the last.
        plain_keys: per layer [KVH, N, d], before rotation.
        values: per layer [KVH, N, d].
    """

    decoder: Decoder
    ids: list[int]
    states: list[Tensor]
    plain_keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def run(cls, decoder: Decoder, ids: Sequence[int]) -> Prefill:
        """Run all layers over the ids."""
        out, kv, states = decoder.run(decoder.embed(ids), 0, decoder.num_layers)
        return cls(decoder, list(ids), [*states, out], [k for k, _ in kv], [v for _, v in kv])

    def __len__(self) -> int:
        return len(self.ids)

    def upto(self, count: int) -> Prefill:
        """The prefill of the first ``count`` tokens, sharing memory."""
        return Prefill(
            self.decoder,
            self.ids[:count],
            [state[:count] for state in self.states],
            [keys[:, :count] for keys in self.plain_keys],
            [values[:, :count] for values in self.values],
        )

    def keys_at(self, layer: int, kept: Tensor, positions: Tensor) -> Tensor:
        """Keys of the kept tokens, rotated to positions: [KVH, K, d]."""
        chosen = self.plain_keys[layer][:, kept.to(self.decoder.device)]
        return self.decoder.place(chosen, positions)

    def values_at(self, layer: int, kept: Tensor) -> Tensor:
        """Values of the kept tokens: [KVH, K, d]."""
        return self.values[layer][:, kept.to(self.decoder.device)]

    def attention(self, layer: int, queries: int) -> Tensor:
        """Causal attention of the last W = min(queries, N) positions, mean over heads.

        Returns:
            [W, N] float32 on the CPU, rows in prompt order.
        """
        return self.head_attention(layer, queries).mean(0).cpu()

    def head_attention(self, layer: int, queries: int) -> Tensor:
        """The same per head: [H, W, N] float32."""
        decoder, count = self.decoder, len(self)
        window = min(queries, count)
        query, _, _ = decoder.project(layer, self.states[layer][None, count - window :])
        positions = torch.arange(count, device=decoder.device)
        query = decoder.place(query[0], positions[count - window :]).float()
        keys = decoder.place(self.plain_keys[layer], positions).float()
        grouped = query.reshape(decoder.num_kv_heads, -1, decoder.head_dim)
        logits = (grouped @ keys.transpose(1, 2)).reshape(-1, window, count)
        logits = logits * float(decoder.layers[layer].self_attn.scaling)
        mask = torch.ones(window, count, dtype=torch.bool, device=decoder.device)
        mask = mask.tril(count - window)
        return logits.masked_fill(~mask, float("-inf")).softmax(-1)
