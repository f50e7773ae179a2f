"""Which name gives which encoder."""

from __future__ import annotations

from pathlib import Path

import torch

from qm_vllm.encoders import dinov2, features, minilm, pretrained
from qm_vllm.encoders.base import EncoderError, FrozenEncoder


def load_encoder(
    name_or_path: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> FrozenEncoder:
    """An encoder by name.

    Args:
        name_or_path: ``"minilm"`` or ``"dinov2"``: the weights of an installed package. A
            folder with a config.json or a name on a model hub: a transformers model, by its
            config's model type (vit, dinov2, dinov2_with_registers: images; videomae: video;
            anything else: text). Another folder, or a file (.pt, .npy, .safetensors): features.
        device: where the model and its states live.
        dtype: type of the weights and states. None: as saved.

    Raises:
        EncoderError: there is no such file, folder, model or device, the package is missing, or
            what is there is no encoder.
    """
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise EncoderError(f"device is {str(device)!r}, but this machine has no CUDA; use \"cpu\"")
    name = str(name_or_path)
    if name == minilm.ALIAS:
        return pretrained.load(minilm.model_folder(), minilm.NAME, where, dtype)
    if name == dinov2.ALIAS:
        return pretrained.load(dinov2.ensure_weights(), dinov2.NAME, where, dtype)
    path = Path(name).expanduser()
    if path.is_file() or (path.is_dir() and not (path / "config.json").is_file()):
        return features.FeatureFiles(path, device=where, dtype=dtype)
    if path.is_dir():
        return pretrained.load(path, path.resolve().name, where, dtype)
    if path.suffix in features.SUFFIXES or name.startswith(("/", "./", "../", "~")):
        raise EncoderError(f"there is no file or folder {name!r}; name one that exists")
    return pretrained.load(name, name, where, dtype)


def of_width(file: Path, device: str | torch.device = "cpu") -> features.FeatureFiles:
    """Files of the width of this one, read in float32 and named by that width.

    For a set whose files lie in several folders: sources are Paths.

    Raises:
        EncoderError: as :func:`qm_vllm.encoders.load_encoder`.
    """
    encoder = load_encoder(str(file), device=device, dtype=torch.float32)
    assert isinstance(encoder, features.FeatureFiles)
    encoder.name = f"features of width {encoder.hidden_size}"
    return encoder
