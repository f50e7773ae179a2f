"""What a prior is told beside merged states: when each was, and what is asked."""

from __future__ import annotations

import math
import re
import zlib

import torch
from torch import Tensor

TIME_FEATURES = 16
"""Input dimensions that say when a merged state was, for a prior that is trained on spans."""
QUERY_BUCKETS = 1024
"""Ids of hashed query words where the encoder has no tokenizer."""

_WORD = re.compile(r"\w+")


def time_features(kept: Tensor, total: int, count: int) -> Tensor:
    """Sines and cosines of where each merged state stood: a merged sequence has lost its clock.

    Feature ``2 i`` is ``sin(pi 2^i t)``, feature ``2 i + 1`` the cosine, with t the middle of the
    token as a share of the sequence.

    Args:
        kept: int64 [K], positions of the anchors.
        total: N, tokens of the sequence.
        count: features, even.

    Returns:
        [K, count] float32.
    """
    t = (kept.double() + 0.5) / total
    angles = math.pi * t[:, None] * 2.0 ** torch.arange(count // 2, device=kept.device)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1).float()


def with_times(states: Tensor, kept: Tensor, total: int, count: int) -> Tensor:
    """States [K, D] with their ``count`` time features behind each row; as they are for 0."""
    if not count:
        return states
    times = time_features(kept.to(states.device), total, count)
    return torch.cat((states, times.to(states.dtype)), 1)


def hashed_words(text: str, buckets: int) -> list[int]:
    """A query as ids in [0, buckets): its words in lower case, by CRC-32.

    Raises:
        ValueError: there is no word in it.
    """
    words = _WORD.findall(text.lower())
    if not words:
        raise ValueError(f"the query {text!r} holds no word")
    return [zlib.crc32(word.encode()) % buckets for word in words]
