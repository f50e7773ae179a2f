"""A random decoder of six narrow layers, with a real tokenizer and chat template."""

from __future__ import annotations

import shutil
from pathlib import Path


def make_tiny_chat_model(tokenizer_from: Path, folder: Path) -> Path:
    """Save it with the tokenizer and chat template of another model's folder; gives ``folder``."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8192,
        initializer_range=0.12, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    for file in tokenizer_from.iterdir():
        if "token" in file.name or file.suffix == ".jinja" or file.name.startswith("vocab"):
            shutil.copy(file, folder / file.name)
    return folder
