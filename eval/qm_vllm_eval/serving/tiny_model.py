"""A random decoder of six narrow layers, alone or with a real tokenizer and chat template."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

TOOLS_TEMPLATE = Path(__file__).with_name("tools.jinja")
"""A chat template in ChatML that shows schemas of tools, calls and results as Qwen2.5's does."""


def make_tiny_model(folder: Path, vocab_size: int, **special_ids: Any) -> Path:
    """Save it; gives ``folder``. ``special_ids``: ``bos_token_id`` and the like."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=128, intermediate_size=256, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8192,
        initializer_range=0.12, **special_ids,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    return folder


def make_tiny_chat_model(
    tokenizer_from: Path, folder: Path, template: Path | None = None
) -> Path:
    """Save it with the tokenizer of another model's folder; gives ``folder``.

    Args:
        template: of its chats; None: the other model's.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(tokenizer, name) for name in names}
    make_tiny_model(folder, len(tokenizer), **ids)
    for file in tokenizer_from.iterdir():
        if "token" in file.name or file.suffix == ".jinja" or file.name.startswith("vocab"):
            shutil.copy(file, folder / file.name)
    if template:
        shutil.copy(template, folder / "chat_template.jinja")
    return folder
