"""transformers models by folder or hub name: which class, which weights, which encoder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from qm_vllm.encoders import attention
from qm_vllm.encoders.base import EncoderError, FrozenEncoder
from qm_vllm.encoders.pixels import Preprocessing
from qm_vllm.encoders.text import TextEncoder
from qm_vllm.encoders.video import MODEL_TYPES as VIDEO_TYPES
from qm_vllm.encoders.video import VideoEncoder
from qm_vllm.encoders.vision import MODEL_TYPES as IMAGE_TYPES
from qm_vllm.encoders.vision import ImageEncoder

# Parts of a checkpoint that hidden states do not pass through.
UNUSED = ("pooler", "mask_token", "decoder", "lm_head")
PREPROCESSING_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")


def load(
    source: str | Path, name: str, device: torch.device, dtype: torch.dtype | None
) -> FrozenEncoder:
    """The encoder that fits the model type in a folder or behind a hub name.

    Args:
        source: folder, or name on a hub.
        name: what to call it.
        dtype: type of the weights; None: as saved.

    Raises:
        EncoderError: config, weights, tokenizer or preprocessing cannot be had, or weights that
            the hidden states need are missing.
    """
    config = _config(source, name)
    if config.model_type in IMAGE_TYPES:
        model = _model(source, config, name, device, dtype)
        return ImageEncoder(model, _preprocessing(source, name), name=name)
    if config.model_type in VIDEO_TYPES:
        model = _model(source, config, name, device, dtype)
        return VideoEncoder(model, _preprocessing(source, name), name=name)
    if hasattr(config, "image_size") or hasattr(config, "vision_config"):
        known = ", ".join(sorted(IMAGE_TYPES | VIDEO_TYPES))
        raise EncoderError(
            f"{name}: the model type {config.model_type!r} reads images in a way that is not "
            f"supported; name a model of the types {known}, or a text encoder"
        )
    tokenizer = _tokenizer(source, name)
    model = _model(source, config, name, device, dtype)
    return TextEncoder(model, tokenizer, name=name)


def _config(source: str | Path, name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source)
    except Exception as error:
        raise EncoderError(
            f"{name!r} is no encoder that can be loaded: it is neither \"minilm\" nor \"dinov2\" "
            "nor a folder or file here, and no config came from a model hub or its cache "
            f"({_first_line(error)}); name a folder with a config.json, or a file of features"
        ) from error


def _tokenizer(source: str | Path, name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:
        raise EncoderError(
            f"{name}: the tokenizer cannot be loaded ({_first_line(error)}); put the model's "
            "tokenizer files beside its config"
        ) from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise EncoderError(  # what transformers makes up for a folder without tokenizer files
            f"{name}: the tokenizer knows special tokens only; put the model's tokenizer files "
            "beside its config"
        )
    return tokenizer


def _model_class(config: Any, name: str) -> Any:
    from transformers import MODEL_MAPPING

    try:
        found = MODEL_MAPPING[type(config)]
    except KeyError as error:
        raise EncoderError(
            f"{name}: transformers has no base model for the type {config.model_type!r}; name "
            "an encoder"
        ) from error
    return found[0] if isinstance(found, tuple) else found


def _model(
    source: str | Path,
    config: Any,
    name: str,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Any:
    """The frozen base model; the encoder's half of an encoder-decoder."""
    from qm_vllm.encoders.forward import freeze

    cls = _model_class(config, name)
    kernel = attention.choose(cls, device, dtype or getattr(config, "dtype", None))
    try:
        with _quiet():
            model, info = cls.from_pretrained(
                source,
                config=config,
                dtype="auto" if dtype is None else dtype,
                attn_implementation=kernel,
                output_loading_info=True,
            )
    except Exception as error:
        raise EncoderError(
            f"{name}: the weights cannot be loaded as {cls.__name__} ({_first_line(error)}); "
            "check that the files are whole and belong to the config"
        ) from error
    missing = sorted(
        key for key in info["missing_keys"] if not any(part in key for part in UNUSED)
    )
    if missing:
        raise EncoderError(
            f"{name}: {len(missing)} weights of {cls.__name__} are not in its files, among them "
            f"{missing[0]!r}; name a folder whose weights belong to its config"
        )
    return freeze(model, device)


def _preprocessing(source: str | Path, name: str) -> Preprocessing:
    from transformers.utils import cached_file

    for file in PREPROCESSING_FILES:
        try:
            path = cached_file(source, file)
        except Exception:  # whatever a hub says: the sentence below tells what is needed
            path = None
        if path is None:
            continue
        try:
            return Preprocessing.from_config(json.loads(Path(path).read_text("utf-8")), name)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise EncoderError(f"{name}: {file} is no readable JSON; write it anew") from error
    raise EncoderError(
        f"{name}: there is no {PREPROCESSING_FILES[0]}, so size, mean and deviation of its "
        "images are unknown; put the model's own file beside its config"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No report about unused heads and no bar: what matters about loading is checked here."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
