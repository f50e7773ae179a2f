"""Merged states as prompts of a prior that vLLM serves."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WEIGHTS = "model.safetensors"


class StatePrompts:
    """Standardises and projects merged states, the part of a prior that runs before the engine.

    vLLM takes prompt embeddings of the model's hidden width only (its server checks it), so the
    first linear map stays with the caller: [K, D] states in, [K, H] embeddings out.
    """

    def __init__(self, projection: Tensor, mean: Tensor, std: Tensor) -> None:
        self.projection, self.mean, self.std = projection, mean, std

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> StatePrompts:
        """Read the three tensors it needs from a prior's folder.

        Raises:
            ValueError: the folder holds no prior's weights.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(folder) / WEIGHTS
        names = ("forward_stack.input_proj.weight", "state_mean", "state_std")
        try:
            with safe_open(path, framework="pt") as file:
                tensors = [file.get_tensor(name).float() for name in names]
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{path} is not the weights file of a prior ({error}); name a folder that "
                "`qm-vllm train-prior` wrote"
            ) from error
        return cls(*tensors)

    def embed(self, states: Tensor) -> Tensor:
        """States [K, D] as prompt embeddings [K, H], float32.

        Raises:
            ValueError: not [K >= 1, D] of the prior's width, or NaN or infinite.
        """
        width = self.projection.shape[1]
        if states.ndim != 2 or states.shape[0] < 1 or states.shape[1] != width:
            raise ValueError(f"states must be [K >= 1, {width}], not {list(states.shape)}")
        bad = ~torch.isfinite(states).all(-1)
        if bool(bad.any()):
            place = int(bad.nonzero()[0])
            raise ValueError(
                f"states {list(states.shape)} hold NaN or infinity, first at position {place}"
            )
        standard = (states.float() - self.mean) / self.std
        return standard @ self.projection.T

    def prompt(self, states: Tensor) -> dict[str, Any]:
        """What ``LLM.generate`` takes (an engine started with ``enable_prompt_embeds=True``)."""
        return {"prompt_embeds": self.embed(states)}

    def encoded(self, states: Tensor) -> str:
        """What ``/v1/completions`` takes as ``prompt_embeds``: base64 of a saved tensor."""
        buffer = io.BytesIO()
        torch.save(self.embed(states), buffer)
        return base64.b64encode(buffer.getvalue()).decode()
