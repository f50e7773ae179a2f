"""Images: ViT and DINOv2 (with or without registers) over one image or a sequence of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from qm_vllm.encoders.base import EncoderError, Window
from qm_vllm.encoders.forward import own_rows, run_layers
from qm_vllm.encoders.pixel_encoder import PixelEncoder
from qm_vllm.encoders.pixels import Preprocessing, height_width

MODEL_TYPES = frozenset({"vit", "dinov2", "dinov2_with_registers"})


class ImageEncoder(PixelEncoder):
    """Hidden states of an image's patches.

    Sources are one image (PIL, uint8 tensor [C, H, W], uint8 array [H, W, C]) or several: any
    iterable of images, read lazily, as for the frames of a video. Each image is encoded by
    itself and gives a class token, the register tokens if the model has some, and its
    patches row by row; the tokens of several images follow each other. ``special`` marks class
    and register tokens.
    """

    def __init__(
        self, model: Any, preprocessing: Preprocessing, *, name: str = "image encoder"
    ) -> None:
        """Freezes the model where it is.

        Raises:
            EncoderError: the model is none of the supported types.
        """
        super().__init__(model, preprocessing, name, "image", MODEL_TYPES)
        config = model.config
        self.special_per_image = 1 + int(getattr(config, "num_register_tokens", 0))
        self.trained_size = height_width(config.image_size)
        self.patch_size = height_width(config.patch_size)

    def _encoded(self, images: Iterator[Any], per_window: int) -> Iterator[Window]:
        count = start = 0
        while pixels := [
            self.preprocessing(image, f"{self.name}: image {count + offset}")
            for offset, image in enumerate(islice(images, per_window))
        ]:
            count += len(pixels)
            yield self._window(pixels, start)  # no name for it: this frame would keep it alive
            start += sum(self._tokens(image) for image in pixels)

    def _tokens(self, pixels: Tensor) -> int:
        height, width = self.patch_size
        return self.special_per_image + (pixels.shape[1] // height) * (pixels.shape[2] // width)

    def _window(self, pixels: list[Tensor], start: int) -> Window:
        shapes = [tuple(image.shape) for image in pixels]
        if len(set(shapes)) > 1:
            raise EncoderError(
                f"{self.name}: images of one window have the shapes {sorted(set(shapes))} after "
                "resizing; use window=1 or a preprocessing that crops"
            )
        inputs: dict[str, Any] = {}
        if self.model.config.model_type == "vit" and shapes[0][1:] != self.trained_size:
            inputs["interpolate_pos_encoding"] = True
        batch = torch.stack(pixels).to(self.device, self.dtype)
        states = run_layers(
            self.model, self.name, self.num_layers, self.hidden_size, pixel_values=batch, **inputs
        )
        special = torch.zeros(states[0].shape[:2], dtype=torch.bool, device=self.device)
        special[:, : self.special_per_image] = True
        return Window(
            layers=own_rows(states, self.name, slice(None), start),
            start=start,
            token_ids=None,
            special=special.flatten(),
        )
