"""Dense attention by torch's scaled dot product."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional as F


class SdpaAttention:
    """torch's scaled dot product: works everywhere, the reference for the others."""

    def __init__(self, attn: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.scale = attn.scale
        self.num_kv_heads, self.head_size = attn.num_kv_heads, attn.head_size
        self.dtype, self.device = dtype, device
        self.scratch: dict[str, torch.Tensor] = {}

    def begin(
        self, num_tokens: int, sliding_window: int | None = None,
        keys: torch.Tensor | None = None, values: torch.Tensor | None = None,
        prompts: int = 1,
    ) -> None:
        self.window = sliding_window
        self.keys = self._scratch("keys", num_tokens) if keys is None else keys
        self.values = self._scratch("values", num_tokens) if values is None else values

    def _scratch(self, name: str, num_tokens: int) -> torch.Tensor:
        """[N, KVH, D] that serves every layer of the pass."""
        shape = (num_tokens, self.num_kv_heads, self.head_size)
        if name not in self.scratch or self.scratch[name].shape != shape:
            self.scratch[name] = torch.empty(shape, dtype=self.dtype, device=self.device)
        return self.scratch[name]

    def precede(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        count = keys.shape[0]
        self.keys[:count], self.values[:count] = keys, values

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int
    ) -> torch.Tensor:
        stop = start + query.shape[0]
        self.keys[start:stop], self.values[start:stop] = key, value
        return self._causal(query, self.keys[:stop], self.values[:stop])

    def attend_prompts(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Sequence[int]
    ) -> torch.Tensor:
        self.keys[:], self.values[:] = key, value
        return torch.cat([
            self._causal(query[low:high], self.keys[low:high], self.values[low:high])
            for low, high in pairwise(bounds)
        ])

    def _causal(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """The last positions of the keys attend."""
        rows, stop = query.shape[0], keys.shape[0]
        start, mask = stop - rows, None
        if start or self.window:
            mask = torch.ones(rows, stop, dtype=torch.bool, device=query.device)
            mask = mask.tril(start)
        if self.window and mask is not None:
            mask = mask.triu(start - self.window + 1)
        out = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.scale,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1)
