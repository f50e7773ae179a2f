"""The image task: the class of a picture from its patches' states."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qm_vllm_eval.paper.prepared import Prepared, Split, scores

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RAW_SIDE = 28
"""Grey pixels of a side that a method without an encoder reads."""


Labelled = tuple[Iterable[Tensor], Tensor]
"""Batches of uint8 images [B, H, W] or [B, H, W, 3], and int64 labels [S] of all of them."""


def prepare(
    train: Labelled, test: Labelled, encoder: Any, side: int, data: str
) -> Prepared:
    """Patch states of every image; the class token is left out.

    Args:
        encoder: a :class:`qm_vllm.encoders.vision.ImageEncoder`.
        side: pixels that images are resized to; a multiple of the patch size.
    """
    classes = int(max(train[1].max(), test[1].max())) + 1
    first, second = (_split(images, labels, encoder, side) for images, labels in (train, test))
    return Prepared(
        "image", first, second, vocabulary=classes, data=data, encoder=encoder.name,
        codes=torch.empty(0),
    )


@torch.inference_mode()
def _split(images: Iterable[Tensor], labels: Tensor, encoder: Any, side: int) -> Split:
    states: list[Tensor] = []
    raw: list[Tensor] = []
    relative: list[Tensor] = []
    absolute: list[Tensor] = []
    for part in images:
        layers = patch_states(pixels(part, side), encoder)
        states.append(layers[-1].half().cpu())
        for held, value in zip((relative, absolute), scores(layers[:-1]), strict=True):
            held.append(value.cpu())
        raw.append(grey(part, RAW_SIDE))
    count = len(labels)
    return Split(
        torch.cat(states), torch.cat(relative), torch.cat(absolute), torch.cat(raw),
        torch.full((count,), RAW_SIDE**2), labels[:, None].long(), torch.ones(count),
        torch.empty(count, 0), torch.zeros(count),
    )


def pixels(images: Tensor, side: int) -> Tensor:
    """uint8 [B, H, W(, 3)] as float [B, 3, side, side], bicubic, with ImageNet's mean and scale."""
    planes = images.float() / 255
    grey_ones = planes.ndim == 3
    planes = planes[:, None].expand(-1, 3, -1, -1) if grey_ones else planes.permute(0, 3, 1, 2)
    planes = functional.interpolate(
        planes, (side, side), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)
    shape = (1, 3, 1, 1)
    return (planes - torch.tensor(MEAN).view(shape)) / torch.tensor(DEVIATION).view(shape)


def grey(images: Tensor, side: int) -> Tensor:
    """uint8 [B, side * side], row by row."""
    planes = images.float()
    planes = planes if planes.ndim == 3 else planes.mean(-1)
    small = functional.interpolate(
        planes[:, None], (side, side), mode="bilinear", antialias=True, align_corners=False
    )
    return small.round().clamp(0, 255).byte().flatten(1)


def patch_states(values: Tensor, encoder: Any) -> list[Tensor]:
    """All layers [B, patches, D] of pixel values, without class and register tokens."""
    found = encoder.model(
        pixel_values=values.to(encoder.device, encoder.dtype), output_hidden_states=True
    ).hidden_states
    return [layer[:, encoder.special_per_image :].float() for layer in found]
