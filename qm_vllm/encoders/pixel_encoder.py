"""What image and video encoders share: a frozen model behind a preprocessing of pixels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from qm_vllm.encoders.base import EncoderError, FrozenEncoder, Window
from qm_vllm.encoders.forward import freeze, sizes
from qm_vllm.encoders.pixels import Preprocessing, images_of


class PixelEncoder(FrozenEncoder):
    """A transformers model that reads images, one after the other."""

    def __init__(
        self, model: Any, preprocessing: Preprocessing, name: str, kind: str,
        model_types: frozenset[str],
    ) -> None:
        """Freezes the model where it is.

        Args:
            kind: "image" or "video", for the error.

        Raises:
            EncoderError: the model is none of the types.
        """
        config = model.config
        if config.model_type not in model_types:
            raise EncoderError(
                f"{name}: the model type {config.model_type!r} is no supported {kind} encoder; "
                f"use one of {', '.join(sorted(model_types))}"
            )
        self.name = name
        self.num_layers, self.hidden_size = sizes(config, name)
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.model = freeze(model, self.device)
        self.preprocessing = preprocessing

    def _windows(self, source: Any, window: int | None) -> Iterator[Window]:
        return self._encoded(images_of(source, self.name), 1 if window is None else window)

    @abstractmethod
    def _encoded(self, images: Iterator[Any], size: int) -> Iterator[Window]:
        """Windows of ``size`` units each (images, clips)."""
