"""Dense attention on CUDA by vLLM's FlashAttention."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from qm_vllm.engine.dense.sdpa_attention import SdpaAttention
from qm_vllm.engine.upload import upload
from qm_vllm_patches.kernels import flash_varlen


class FlashVarlenAttention(SdpaAttention):
    """vLLM's FlashAttention on CUDA; its causal mask is bottom-right aligned."""

    def __init__(self, attn: Any, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(attn, dtype, device)
        self.function, self.version = flash_varlen(attn.head_size)
        self.bounds: dict[tuple[int, ...], torch.Tensor] = {}
        if self.version is None:
            raise NotImplementedError("no FlashAttention for this head size")

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int
    ) -> torch.Tensor:
        rows = query.shape[0]
        stop = start + rows
        self.keys[start:stop], self.values[start:stop] = key, value
        return self._flash(query, self.keys[:stop], self.values[:stop], (0, rows), (0, stop))

    def attend_prompts(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Sequence[int]
    ) -> torch.Tensor:
        self.keys[:], self.values[:] = key, value
        return self._flash(query, self.keys, self.values, tuple(bounds), tuple(bounds))

    def _flash(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
        queries_at: tuple[int, ...], keys_at: tuple[int, ...],
    ) -> torch.Tensor:
        longest = [max(b - a for a, b in pairwise(at)) for at in (queries_at, keys_at)]
        return self.function(  # type: ignore[no-any-return]
            q=query, k=keys, v=values,
            cu_seqlens_q=self._on_device(queries_at), cu_seqlens_k=self._on_device(keys_at),
            max_seqlen_q=longest[0], max_seqlen_k=longest[1], softmax_scale=self.scale,
            causal=True, fa_version=self.version,
            window_size=None if self.window is None else [self.window - 1, 0],
        )

    def _on_device(self, bounds: tuple[int, ...]) -> torch.Tensor:
        """The bounds on the device, sent once and not waited for."""
        if bounds not in self.bounds:
            self.bounds[bounds] = upload(torch.tensor(bounds, dtype=torch.int32), self.device)
        return self.bounds[bounds]
