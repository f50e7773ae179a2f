"""Tiny random decoders for tests of the reference harness."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from tests.engines import make_tiny_model


@lru_cache
def tiny(family: str) -> Any:
    """A float32 transformers model of the family; 6 layers, width 128, 512 tokens."""
    from transformers import AutoModelForCausalLM

    folder = make_tiny_model(family, Path(mkdtemp()))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
