"""Causal attention over one layer's contiguous keys, queries in chunks (bottom-right aligned).

On CUDA vLLM's FlashAttention. On CPU vLLM's kernel over a scratch of contiguous blocks where it
uses matrix units, torch's flash kernel where it does not. Elsewhere torch's scaled dot product.
All take the chunk ``[start, stop)`` of queries and attend to keys ``[0, stop)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from qm_vllm.engine.dense.cpu_attention import CpuFlashAttention, CpuKernelAttention
from qm_vllm.engine.dense.flash_attention import FlashVarlenAttention
from qm_vllm.engine.dense.sdpa_attention import SdpaAttention

NO_MATRIX_UNITS = ("vec", "vec16")
"""Names of vLLM's CPU kernels that are made of vector instructions alone."""


class DenseAttention(Protocol):
    """Attention of one layer at a time; :meth:`begin` forgets the layer before."""

    def begin(
        self, num_tokens: int, sliding_window: int | None = None,
        keys: torch.Tensor | None = None, values: torch.Tensor | None = None,
        prompts: int = 1,
    ) -> None:
        """Start a layer of ``num_tokens`` rows, whose queries see so many newest positions.

        Args:
            keys, values: [N, KVH, D] that the caller wants filled with what it will hand to
                :meth:`attend`.
            prompts: how many the rows belong to; beyond one, :meth:`attend_prompts` follows.
        """

    def precede(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put rows [P, KVH, D] before those that follow: the first are at P, not at 0."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int
    ) -> torch.Tensor:
        """Append the chunk's ``key``/``value`` [C, KVH, D] at ``start`` and attend.

        Args:
            query: [C, H, D]; row i sits at position ``start + i``.

        Returns:
            [C, H, D].
        """
        ...

    def attend_prompts(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Sequence[int]
    ) -> torch.Tensor:
        """All rows of several prompts at once; each attends to its own prompt.

        Args:
            query: [N, H, D]. key, value: [N, KVH, D].
            bounds: prompt i has rows ``[bounds[i], bounds[i + 1])``.

        Returns:
            [N, H, D].
        """
        ...


def choose_backend(attn: Any, dtype: torch.dtype, device: torch.device) -> DenseAttention:
    """The best backend that this machine has for the layer's shape."""
    half = dtype in (torch.float16, torch.bfloat16)
    try:
        if device.type == "cpu":
            kernel = CpuKernelAttention(attn, dtype, device)
            plain = kernel.isa in NO_MATRIX_UNITS
            return CpuFlashAttention(attn, dtype, device) if plain else kernel
        if device.type == "cuda" and half and attn.head_size <= 256:
            return FlashVarlenAttention(attn, dtype, device)
    except (ImportError, AttributeError, NotImplementedError):
        pass
    return SdpaAttention(attn, dtype, device)
