"""Which tokens of a tokenizer stand for no text."""

from __future__ import annotations

from typing import Any


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of a tokenizer's special tokens: those that it names, and those added as special.

    Many tokenizers name only the beginning, the end and the padding, though the marks of their
    chats ("<|im_start|>") are special, too.
    """
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    marked = {token_id for token_id, token in added.items() if token.special}
    return frozenset(getattr(tokenizer, "all_special_ids", ())) | marked
