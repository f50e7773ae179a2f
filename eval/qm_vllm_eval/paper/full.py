"""The paper's own data, from where the user keeps them: WikiText-103, ImageNet-1K, UCF101."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from qm_vllm_eval.datasets.imagenet import open_imagenet
from qm_vllm_eval.datasets.published import PUBLISHED, absent
from qm_vllm_eval.datasets.rows import DataRow, DataSetError
from qm_vllm_eval.datasets.ucf101 import open_ucf101
from qm_vllm_eval.datasets.wikitext import open_wikitext
from qm_vllm_eval.paper import video
from qm_vllm_eval.paper.image import Labelled
from qm_vllm_eval.paper.prepared import Prepared
from qm_vllm_eval.paper.scale import Scale

Row = TypeVar("Row", bound=DataRow)
_BATCH = 64


def wikitext(source: str | None, counts: tuple[int, int]) -> tuple[list[str], list[str]]:
    """Articles of the train and test split, no more than the windows can need.

    Raises:
        DataSetError: the set is not at hand.
    """
    path = _given("wikitext", source)
    found = []
    for split, count in zip(("train", "test"), counts, strict=True):
        rows = islice(_usable(open_wikitext(path, split)), count)
        found.append([row.text for row in rows])
    return found[0], found[1]


def imagenet(
    source: str | None, counts: tuple[int, int], side: int
) -> tuple[Labelled, Labelled]:
    """Images of the train and validation split, spread evenly over each, cropped to a square.

    Raises:
        DataSetError: the set is not at hand, or an image cannot be decoded.
    """
    path = _given("imagenet", source)
    found = []
    for split, count in zip(("train", "validation"), counts, strict=True):
        rows = spread(list(_usable(open_imagenet(path, split))), count)
        labels = torch.tensor([row.label for row in rows])
        found.append((Images([row.image for row in rows], side), labels))
    return found[0], found[1]


class Images:
    """Batches uint8 [B, side, side, 3] of image files, decoded when they are asked for."""

    def __init__(self, paths: list[Any], side: int) -> None:
        self._paths, self._side = paths, side

    def __iter__(self) -> Iterator[Tensor]:
        for first in range(0, len(self._paths), _BATCH):
            part = self._paths[first : first + _BATCH]
            yield torch.from_numpy(np.stack([_square(path, self._side) for path in part]))


def ucf101(source: str | None, encoder: Any, scale: Scale) -> Prepared:
    """One clip from the middle of each video of fold 1.

    Raises:
        DataSetError: the set is not at hand, or too few videos are long enough.
    """
    from qm_vllm_eval.datasets.ego4d_real import frames

    path = _given("ucf101", source)
    sides = []
    for split, count in zip(("train", "test"), scale.video, strict=True):
        clips = []
        for row in spread(list(_usable(open_ucf101(path, split))), count):
            shown = list(frames(row.video, 25.0))
            if len(shown) < video.SPAN:
                continue
            first = (len(shown) - video.SPAN) // 2
            part = shown[first : first + video.SPAN]
            encoded = video.encode(part, encoder, scale.video_side, scale.pooled)
            clips.append(video.Clip.cut(encoded, 0))
        if len(clips) < 2:
            raise DataSetError(f"UCF101's {split} split has no two videos of {video.SPAN} frames")
        sides.append(clips)
    return video.of_clips(*sides, encoder=encoder.name, data="UCF101, fold 1")


def _given(name: str, source: str | None) -> str:
    if source is None:
        raise absent(PUBLISHED[name], f"no path of {PUBLISHED[name].name} was given")
    return source


def _usable(rows: Iterable[Row]) -> Iterator[Row]:
    return (row for row in rows if row.usable)


def spread(rows: list[Row], count: int) -> list[Row]:
    """Up to ``count`` rows, evenly over all of them."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _square(path: Any, side: int) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            cropped = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
            return np.asarray(cropped)
    except OSError as error:
        raise DataSetError(f"{path} cannot be decoded: {error}") from error


