"""The AR prior (paper 3.4): a small causal transformer over merged states.

Its modules import torch and transformers, never vLLM, except :mod:`qm_vllm.prior.served`, which is
the prior as a vLLM model. Auto classes of transformers know the prior once ``PriorConfig`` or
``QuickMergePriorForCausalLM`` was imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qm_vllm.prior.config import PriorConfig
    from qm_vllm.prior.loss import PriorLoss, l_ar
    from qm_vllm.prior.model import PriorOutput, QuickMergePriorForCausalLM
    from qm_vllm.prior.prompts import StatePrompts

__all__ = [
    "PriorConfig",
    "PriorLoss",
    "PriorOutput",
    "QuickMergePriorForCausalLM",
    "StatePrompts",
    "l_ar",
]

_HOMES = {
    "PriorConfig": "config", "PriorLoss": "loss", "l_ar": "loss", "PriorOutput": "model",
    "QuickMergePriorForCausalLM": "model", "StatePrompts": "prompts",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
