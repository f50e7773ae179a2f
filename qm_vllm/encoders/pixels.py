"""From images and frames to the pixels a vision model was trained on, in plain torch.

Does what a preprocessor_config.json asks for: resize (antialiased), centre crop, scale,
normalise. torchvision is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from qm_vllm.encoders.base import EncoderError

RESAMPLING = {2: "bilinear", 3: "bicubic"}  # by PIL's numbers, which the config files use


@dataclass(frozen=True)
class Preprocessing:
    """What happens to each image; sizes in pixels, (height, width).

    Attributes:
        shorter_side: resize so that the shorter side has this length; None: see ``size``.
        size: resize to exactly this; None with shorter_side None: no resizing.
        resample: "bilinear" or "bicubic", antialiased in both cases.
        crop: centre crop after resizing; None: none.
        scale: factor on the 0..255 values.
        mean, std: of the scaled values, per channel (R, G, B).
    """

    shorter_side: int | None
    size: tuple[int, int] | None
    resample: str
    crop: tuple[int, int] | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_config(cls, config: dict[str, Any], name: str) -> Preprocessing:
        """From the content of a preprocessor_config.json.

        Raises:
            EncoderError: a value is missing or asks for something that is not done here.
        """
        crops = config.get("do_center_crop", "crop_size" in config)
        crop = _height_width(config.get("crop_size"), "crop_size", name) if crops else None
        shorter, size = None, None
        if config.get("do_resize", True):
            asked = config.get("size")
            if isinstance(asked, int):
                shorter, size = (asked, None) if crop else (None, (asked, asked))
            elif isinstance(asked, dict) and set(asked) == {"shortest_edge"}:
                shorter = int(asked["shortest_edge"])
            else:
                size = _height_width(asked, "size", name)
        resample = RESAMPLING.get(config.get("resample", 2))
        if resample is None:
            raise EncoderError(
                f"{name}: resample {config['resample']!r} in its preprocessor_config is not "
                "supported; use 2 (bilinear) or 3 (bicubic)"
            )
        mean: tuple[float, ...] = (0.0, 0.0, 0.0)
        std: tuple[float, ...] = (1.0, 1.0, 1.0)
        if config.get("do_normalize", True):
            mean = _channels(config.get("image_mean"), "image_mean", name)
            std = _channels(config.get("image_std"), "image_std", name)
        scaled = config.get("do_rescale", True)
        scale = float(config.get("rescale_factor", 1 / 255)) if scaled else 1.0
        return cls(shorter, size, resample, crop, scale, mean, std)

    def __call__(self, image: Any, what: str) -> Tensor:
        """Pixels float32 [3, H, W] on the CPU.

        Args:
            image: a PIL image, a uint8 tensor [C, H, W], a uint8 array [H, W, C] or [H, W];
                C is 1 or 3.
            what: the image's name in error texts.

        Raises:
            EncoderError: another kind, shape or type, or smaller than the crop.
        """
        pixels = _raw(image, what)
        height, width = pixels.shape[-2:]
        size = self.size
        if self.shorter_side is not None:
            long = self.shorter_side * max(height, width) // min(height, width)
            size = (self.shorter_side, long) if height <= width else (long, self.shorter_side)
        if size is not None and size != (height, width):
            # on uint8, as PIL does it: rounded to whole values, the overshoot cut off
            pixels = interpolate(pixels[None], size=size, mode=self.resample, antialias=True)[0]
        if self.crop is not None:
            top, left = (pixels.shape[1] - self.crop[0]) // 2, (pixels.shape[2] - self.crop[1]) // 2
            if min(top, left) < 0:
                raise EncoderError(
                    f"{what} has {tuple(pixels.shape[1:])} pixels after resizing, fewer than its "
                    f"crop of {self.crop}; give a larger image"
                )
            pixels = pixels[:, top : top + self.crop[0], left : left + self.crop[1]]
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels.float() * self.scale - mean) / std


def images_of(source: Any, name: str) -> Iterator[Any]:
    """The images of a source one by one; nothing of a lazy source is read ahead but the first.

    Args:
        source: one image, or several: a tensor [N, C, H, W], an array [N, H, W, C], or any
            iterable of images.

    Raises:
        EncoderError: the source is no image and no iterable, or has none.
    """
    if _is_image(source):
        return iter([source])
    if isinstance(source, str | bytes) or not isinstance(source, Iterable):
        raise EncoderError(
            f"{name}: a source of type {type(source).__name__} is no image; give a PIL image, a "
            "uint8 tensor [C, H, W], a uint8 array [H, W, C], or several of them"
        )
    images = iter(source)
    first = next(images, None)
    if first is None:
        raise EncoderError(f"{name}: the source has no image; give at least one")
    return _again(first, images)


def height_width(size: Any) -> tuple[int, int]:
    """A config's size, one number for both sides or two, as (height, width)."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _again(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    del first
    yield from rest


def _is_image(source: Any) -> bool:
    if isinstance(source, Tensor | np.ndarray):
        return source.ndim < 4
    return hasattr(source, "convert") and hasattr(source, "size")


def _raw(image: Any, what: str) -> Tensor:
    """uint8 [3, H, W] of an image of any kind that is allowed."""
    if hasattr(image, "convert"):
        image = np.asarray(image.convert("RGB"))
    if isinstance(image, Tensor):
        pixels, layout = image.detach().cpu(), "[C, H, W]"
    elif isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise _unfit(image, what)
        pixels, layout = torch.from_numpy(np.array(image)), "[H, W, C]"
        pixels = pixels[None] if pixels.dim() == 2 else pixels
        if pixels.dim() == 3 and image.ndim == 3:
            pixels = pixels.permute(2, 0, 1)
    else:
        raise EncoderError(
            f"{what} is of type {type(image).__name__}; give a PIL image, a uint8 tensor "
            "[C, H, W] or a uint8 array [H, W, C]"
        )
    if pixels.dtype != torch.uint8 or pixels.dim() != 3:
        raise _unfit(image, what)
    if pixels.shape[0] not in (1, 3) or 0 in pixels.shape:
        raise EncoderError(
            f"{what} has the shape {tuple(image.shape)}; give {layout} with one or three channels "
            "and at least one pixel"
        )
    return pixels.expand(3, -1, -1)


def _unfit(image: Any, what: str) -> EncoderError:
    kind = str(image.dtype).removeprefix("torch.")
    return EncoderError(
        f"{what} has the shape {tuple(image.shape)} and type {kind}; give uint8 values 0 to 255, "
        "as a tensor [C, H, W] or an array [H, W, C]"
    )


def _height_width(value: Any, key: str, name: str) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if isinstance(value, dict) and {"height", "width"} <= set(value):
        return int(value["height"]), int(value["width"])
    raise EncoderError(
        f"{name}: {key} {value!r} in its preprocessor_config is not supported; give height and "
        "width, or for size the shortest_edge alone"
    )


def _channels(value: Any, key: str, name: str) -> tuple[float, ...]:
    if isinstance(value, list | tuple) and len(value) == 3:
        return tuple(float(part) for part in value)
    raise EncoderError(
        f"{name}: {key} {value!r} in its preprocessor_config is not supported; give three numbers"
    )
