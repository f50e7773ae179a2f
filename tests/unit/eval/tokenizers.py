"""Tokenizers for the tests of the evaluation: the embedded model's, and a tiny one."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from qm_vllm.assets.embedded import ensure_model


@lru_cache(maxsize=1)
def embedded_tokenizer() -> Any:
    """The tokenizer of SmolLM2: byte-level, with a chat template, adds no BOS."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(ensure_model()))


class PlainTokenizer:
    """One id for every word with the white space before it; a BOS token, no chat template."""

    chat_template = None
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        parts = re.findall(r"\s*\S+|\s+$", text)
        ids = [self.ids.setdefault(part, 3 + len(self.ids)) for part in parts]
        return [1, *ids] if add_special_tokens else ids
