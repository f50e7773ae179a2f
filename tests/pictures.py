"""Tiny random models that see pictures, made in memory, and engines that serve them.

vLLM's models import torchvision, by way of transformers' processors, for functions that nothing
here calls. A CPU machine of this project has none (docs/dependencies.md), so empty modules stand in
for it: images go through transformers' processors on Pillow, and the models are vLLM's own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.engines import engine, random_prompt
from tests.families import COMMON

KINDS = ("qwen2-vl", "llava")
WORDS = 507
END, START, STOP, PICTURE, VIDEO = range(WORDS, WORDS + 5)
NAMES = ("<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SPECIAL = (END, START, STOP)
"""Ids that stay; the one that holds a picture's places is special, too, and does not."""
TEXT: dict[str, Any] = {
    **COMMON, "bos_token_id": END, "eos_token_id": END, "pad_token_id": END,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
SIDE = 96
"""Pixels of LLaVA's square pictures."""


def picture(seed: int, width: int = 128, height: int = 96) -> Image.Image:
    """Noise: 192 tokens of Qwen2-VL, 144 of LLaVA."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def prompt(*texts: int, seed: int = 0) -> list[int]:
    """Ids with a picture between texts of so many tokens; one id holds each picture's places."""
    ids = random_prompt(texts[0], seed, WORDS)
    for number, length in enumerate(texts[1:], 1):
        ids += [START, PICTURE, STOP, *random_prompt(length, seed + number, WORDS)]
    return ids


def make_model(kind: str, folder: Path, seed: int = 0) -> Path:
    """Save a random model with its tokenizer and image processor; returns its folder."""
    import torch
    import transformers

    torch.manual_seed(seed)
    made = {"qwen2-vl": _qwen2_vl, "llava": _llava}[kind]().eval()
    target = folder / kind
    made.save_pretrained(target)
    _tokenizer().save_pretrained(target)
    images = images_of(kind)
    images.save_pretrained(target)
    if kind == "llava":
        _as_published(target / "model.safetensors")
        transformers.LlavaProcessor(
            images, _tokenizer(), patch_size=8, vision_feature_select_strategy="default",
            image_token=NAMES[3], num_additional_image_tokens=1,
        ).save_pretrained(target)
    return target


def _as_published(file: Path) -> None:
    """Names of CLIP's weights as checkpoints have them, which transformers reads and vLLM needs."""
    from safetensors.torch import load_file, save_file

    weights = {
        name.replace("vision_tower.", "vision_tower.vision_model."): weight
        for name, weight in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})


def images_of(kind: str) -> Any:
    """The image processor of a kind of model."""
    if kind == "llava":
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        return CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2,
        size={"shortest_edge": 64, "longest_edge": 128 * 128},
    )


def _qwen2_vl() -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": ROPE},
        vision_config={
            "depth": 2, "embed_dim": 32, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 2,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        image_token_id=PICTURE, video_token_id=VIDEO, vision_start_token_id=START,
        vision_end_token_id=STOP,
    ))


def _llava() -> Any:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    return LlavaForConditionalGeneration(LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
            image_size=SIDE, patch_size=8,
        ),
        text_config=LlamaConfig(**TEXT), image_token_index=PICTURE, image_seq_length=144,
    ))


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(WORDS)} | {name: WORDS + i for i, name in enumerate(NAMES)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=NAMES[0], pad_token=NAMES[0],
        additional_special_tokens=list(NAMES[1:]),
    )


@contextmanager
def serving(folder: Path, config: Any = None, **options: Any) -> Iterator[Any]:
    """An engine of :func:`tests.engines.engine` that takes pictures, or a video's states."""
    films = {"enable_mm_embeds": True} if (film := options.pop("film", False)) else {}
    limits = {"image": 0, "video": 1} if film else {"image": 4, "video": 0}
    limits = {"image": 4} if "llava" in folder.name else limits
    with pytest.MonkeyPatch.context() as patch:
        _without_torchvision(patch)
        _register("qwen2_vl" if "qwen2" in folder.name else "llava")
        if "qwen2" in folder.name:
            _without_video(patch)
        with engine(folder, config, limit_mm_per_prompt=limits, **films, **options) as llm:
            yield llm


def _without_torchvision(patch: pytest.MonkeyPatch) -> None:
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():  # asked before, so that the answer stays
        return
    assert find_spec("torchvision") is None
    parts = ("torchvision", "transforms", "v2", "functional")
    above = None
    for count, part in enumerate(parts, 1):
        name = ".".join(parts[:count])
        empty = ModuleType(name)
        empty.__spec__, empty.__path__ = ModuleSpec(name, None), []
        patch.setitem(sys.modules, name, empty)
        if above is not None:
            setattr(above, part, empty)
        above = empty


def _register(module: str) -> None:
    """Name a model by its class: else vLLM looks at it in another process, without stand-ins."""
    from vllm import ModelRegistry

    name = {"qwen2_vl": "Qwen2VL", "llava": "Llava"}[module] + "ForConditionalGeneration"
    found = import_module(f"vllm.model_executor.models.{module}")
    ModelRegistry.register_model(name, getattr(found, name))


def _without_video(patch: pytest.MonkeyPatch) -> None:
    """Let vLLM find a processor of which only the part for images can be loaded."""
    from transformers import AutoTokenizer, Qwen2VLProcessor
    from transformers.processing_utils import VideosKwargs
    from vllm.model_executor.models import qwen2_vl

    class ForImages(Qwen2VLProcessor):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return type(argument)

        @classmethod
        def from_pretrained(cls, path: str, *_: Any, **__: Any) -> Any:
            video = SimpleNamespace(valid_kwargs=VideosKwargs, merge_size=2)
            return cls(images_of("qwen2-vl"), AutoTokenizer.from_pretrained(path), video)

        def __init__(self, image_processor=None, tokenizer=None, video_processor=None, **kwargs):
            super().__init__(image_processor, tokenizer, video_processor, **kwargs)

    patch.setattr(qwen2_vl, "Qwen2VLProcessor", ForImages)
