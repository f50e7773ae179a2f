"""Which attention kernel a frozen encoder runs: flash-attn, SDPA or transformers' own code."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

HALF = (torch.float16, torch.bfloat16)


def choose(model_class: Any, device: torch.device, dtype: torch.dtype | None) -> str:
    """Value for transformers' ``attn_implementation``.

    flash_attention_2 where the package flash_attn is there, the device is CUDA, the weights are
    half precision and the class supports it; else sdpa; else eager, which each class has.

    Args:
        model_class: the transformers class; its ``_supports_*`` flags decide.
        dtype: type of the weights; None (not known yet) counts as not half.
    """
    if (
        device.type == "cuda"
        and dtype in HALF
        and getattr(model_class, "_supports_flash_attn", False)
        and find_spec("flash_attn") is not None
    ):
        return "flash_attention_2"
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"
