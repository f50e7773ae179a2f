"""Video: VideoMAE over clips of frames."""

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

MODEL_TYPES = frozenset({"videomae"})


class VideoEncoder(PixelEncoder):
    """Hidden states of a video's tubelets.

    Sources are the frames in order: any iterable of images, read lazily (PIL, uint8 tensors
    [C, H, W], uint8 arrays [H, W, C]), a tensor [T, C, H, W] or an array [T, H, W, C]. They are
    cut into clips of the config's num_frames; a clip's states see nothing of the others. A
    tubelet is tubelet_size frames of one patch; a clip gives num_frames // tubelet_size steps in
    time of ``tokens_per_step`` patches each, row by row. There is no special token.

    A last clip with fewer frames is filled up by repeating its last frame. Steps that hold
    nothing but repeated frames are dropped, so T frames always give ceil(T / tubelet_size) steps;
    the states of that clip have seen the repeated frames.
    """

    def __init__(
        self, model: Any, preprocessing: Preprocessing, *, name: str = "video encoder"
    ) -> None:
        """Freezes the model where it is.

        Raises:
            EncoderError: the model is no VideoMAE, or its preprocessing gives other sizes than
                it takes.
        """
        super().__init__(model, preprocessing, name, "video", MODEL_TYPES)
        config = model.config
        self.clip_frames = int(config.num_frames)
        self.tubelet_size = int(config.tubelet_size)
        height, width = height_width(config.image_size)
        patch_height, patch_width = height_width(config.patch_size)
        self.tokens_per_step = (height // patch_height) * (width // patch_width)
        given = preprocessing.crop or preprocessing.size
        if given != (height, width):
            raise EncoderError(
                f"{name}: its preprocessing gives frames of {given} pixels, but the model takes "
                f"{(height, width)}; set crop_size or size in its preprocessor_config to that"
            )

    def _encoded(self, frames: Iterator[Any], clips: int) -> Iterator[Window]:
        count = start = 0
        while pixels := [
            self.preprocessing(frame, f"{self.name}: frame {count + offset}")
            for offset, frame in enumerate(islice(frames, clips * self.clip_frames))
        ]:
            count += len(pixels)
            yield self._window(pixels, start)  # no name for it: this frame would keep it alive
            start += self._tokens(pixels)

    def _tokens(self, frames: list[Tensor]) -> int:
        return -(-len(frames) // self.tubelet_size) * self.tokens_per_step

    def _window(self, pixels: list[Tensor], start: int) -> Window:
        kept = self._tokens(pixels)
        pixels = pixels + [pixels[-1]] * (-len(pixels) % self.clip_frames)
        batch = torch.stack(pixels).unflatten(0, (-1, self.clip_frames))
        states = run_layers(
            self.model,
            self.name,
            self.num_layers,
            self.hidden_size,
            pixel_values=batch.to(self.device, self.dtype),
        )
        return Window(
            layers=own_rows(states, self.name, slice(0, kept), start),
            start=start,
            token_ids=None,
            special=torch.zeros(kept, dtype=torch.bool, device=self.device),
        )
