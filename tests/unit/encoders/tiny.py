"""Tiny random models, a word tokenizer, and plain transformers as the reference."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from qm_vllm.encoders import Window
from qm_vllm.encoders.pixels import Preprocessing

WORDS = 90
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
PLAIN = Preprocessing(None, (16, 16), "bicubic", None, 1 / 255, (0.5,) * 3, (0.25,) * 3)


def tokenizer(template: str = "[CLS] $A [SEP]", longest: int = 16) -> Any:
    """Words w0 to w89; the ids of [PAD], [CLS], [SEP], [UNK] come first."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{i}" for i in range(WORDS))]
    inner = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = [(name, names.index(name)) for name in ("[CLS]", "[SEP]") if name in template]
    inner.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=longest,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    )


def text(tokens: int) -> str:
    return " ".join(f"w{(7 * i + i // 5) % WORDS}" for i in range(tokens))


def model(kind: str, **changes: Any) -> Any:
    """A random transformers model of a kind, in eval mode, the same each time."""
    torch.manual_seed(0)
    name, settings = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**(settings | changes))
    cls = transformers.MODEL_MAPPING[type(config)]
    return cls(config).eval()


VOCABULARY = {"vocab_size": WORDS + 4, "intermediate_size": 64}
IMAGES = {**SIZES, "intermediate_size": 64, "image_size": 16, "patch_size": 8}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {**SIZES, **VOCABULARY, "max_position_embeddings": 24}),
    "roberta": (
        "Roberta",
        {**SIZES, **VOCABULARY, "max_position_embeddings": 20, "pad_token_id": 0},
    ),
    "t5": (
        "T5",
        {"vocab_size": 94, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4},
    ),
    "bart": (
        "Bart",
        {
            "vocab_size": 94,
            "d_model": 32,
            "encoder_layers": 3,
            "decoder_layers": 1,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 24,
        },
    ),
    "llama": (
        "Llama",
        {**SIZES, **VOCABULARY, "num_key_value_heads": 2, "max_position_embeddings": 64},
    ),
    "vit": ("ViT", IMAGES),
    "dinov2": ("Dinov2", {**IMAGES, "mlp_ratio": 2}),
    "dinov2_with_registers": (
        "Dinov2WithRegisters",
        {**IMAGES, "mlp_ratio": 2, "num_register_tokens": 3},
    ),
    "videomae": ("VideoMAE", {**IMAGES, "num_frames": 4, "tubelet_size": 2}),
}


@torch.no_grad()
def reference(plain: Any, **inputs: Any) -> list[Tensor]:
    """transformers' hidden states of one forward pass: L + 1 tensors [B, n, D]."""
    if getattr(plain.config, "is_encoder_decoder", False):
        plain = plain.get_encoder()
    return list(plain(**inputs, output_hidden_states=True).hidden_states)


def assert_layers(window: Window, expected: list[Tensor], keep: slice = slice(None)) -> None:
    """All layers of a window are the kept rows [n, D] of the expected ones."""
    assert len(window.layers) == len(expected)
    for actual, layer in zip(window.layers, expected, strict=True):
        rows = layer.flatten(0, -2)[keep]
        assert actual.shape == rows.shape
        torch.testing.assert_close(actual, rows, atol=1e-5, rtol=1e-5)
