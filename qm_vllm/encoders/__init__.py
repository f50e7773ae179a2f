"""Frozen encoders whose hidden states a token-merging method reads.

Text models, ViT and DINOv2, VideoMAE and files of features behind one interface:
:func:`load_encoder` gives a :class:`FrozenEncoder`, its ``stream`` gives one :class:`Window`
after another with the states of all layers. docs/encoders.md says what loads what.
"""

from __future__ import annotations

from qm_vllm.encoders.base import EncoderError, FrozenEncoder, Window
from qm_vllm.encoders.load import load_encoder

__all__ = ["EncoderError", "FrozenEncoder", "Window", "load_encoder"]
