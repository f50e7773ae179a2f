"""The video task: how a clip goes on, from the frames so far.

A clip is 8 frames that the decoder is given and 8 that it has to make up. Each frame is pooled to
a few patch states; the mean of them is the frame's state. The decoder says the next frames as
codes (the nearest of k-means centres of the training frames' states), sampled one after another,
and the Fréchet distance compares the made-up clips with the real ones (qm_vllm_eval.frechet).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qm_vllm_eval.paper.image import grey, patch_states, pixels
from qm_vllm_eval.paper.prepared import Prepared, Split, scores

GIVEN, WANTED = 8, 8
STEP = 2
"""Frames of the video from one frame of a clip to the next."""
CODES = 128
RAW_SIDE = 16
TRAIN_SHARE = 0.7
SPAN = (GIVEN + WANTED - 1) * STEP + 1
"""Frames of the video that a clip covers."""


def encode(frames: Iterable[Any], encoder: Any, side: int, pooled: int) -> dict[str, Tensor]:
    """States of a video's frames.

    Args:
        frames: uint8 RGB arrays [H, W, 3].
        encoder: a :class:`qm_vllm.encoders.vision.ImageEncoder`.
        side: pixels that frames are resized to. pooled: tokens of a side after mean pooling.

    Returns:
        "layers": float16 [L + 1, T, pooled^2, D]; "raw": uint8 [T, RAW_SIDE^2].
    """
    layers: list[Tensor] = []
    raw: list[Tensor] = []
    for batch in _batches(frames, 16):
        with torch.inference_mode():
            found = patch_states(pixels(batch, side), encoder)
            layers.append(torch.stack([_pool(layer, pooled) for layer in found]).half().cpu())
        raw.append(grey(batch, RAW_SIDE))
    return {"layers": torch.cat(layers, 1), "raw": torch.cat(raw)}


def prepare(
    videos: Mapping[str, Mapping[str, Tensor]], counts: tuple[int, int], encoder: str, data: str
) -> Prepared:
    """Clips of a few videos, each a class; the end of each is held out.

    Args:
        videos: what :func:`encode` returned, by name.
        counts: most clips to train on and to measure on, spread evenly over all starts.

    Raises:
        ValueError: no video is long enough for a clip on both sides of the cut.
    """
    starts: tuple[list[tuple[str, int]], list[tuple[str, int]]] = ([], [])
    for name, video in videos.items():
        length = video["raw"].shape[0]
        border = int(TRAIN_SHARE * length)
        starts[0].extend((name, i) for i in range(border - SPAN + 1))
        starts[1].extend((name, i) for i in range(border, length - SPAN + 1))
    if not all(starts):
        raise ValueError(f"videos need more than {SPAN} frames on both sides of the cut")
    sides = []
    for side, most in zip(starts, counts, strict=True):
        count = min(most, len(side))
        chosen = [side[i * len(side) // count] for i in range(count)]
        sides.append([Clip.cut(videos[name], first) for name, first in chosen])
    return of_clips(*sides, encoder=encoder, data=data)


@dataclass(frozen=True, eq=False)
class Clip:
    """States of a clip's frames.

    Attributes:
        states: float16 [N, D] of the frames that are given, saliency, absolute: [N].
        raw: uint8 of the same frames. later: [WANTED, D], the states of the frames after them.
    """

    states: Tensor
    saliency: Tensor
    absolute: Tensor
    raw: Tensor
    later: Tensor

    @classmethod
    def cut(cls, video: Mapping[str, Tensor], first: int) -> Clip:
        """The clip that begins at a frame of what :func:`encode` returned."""
        given = slice(first, first + GIVEN * STEP, STEP)
        layers = video["layers"][:, given].flatten(1, 2).float()
        later = video["layers"][-1, first + GIVEN * STEP :][: WANTED * STEP : STEP]
        relative, absolute = scores([layer[None] for layer in layers[:-1]])
        return cls(layers[-1].half(), relative[0], absolute[0], video["raw"][given].flatten(),
                   later.float().mean(1))


def of_clips(train: list[Clip], test: list[Clip], *, encoder: str, data: str) -> Prepared:
    """The task from clips; the codes are centres of the training clips' later frames."""
    codes = centres(torch.cat([clip.later for clip in train]), CODES, seed=0)
    first, second = _split(train, codes), _split(test, codes)
    return Prepared(
        "video", first, second, vocabulary=len(codes), data=data, encoder=encoder, codes=codes
    )


def _split(clips: list[Clip], codes: Tensor) -> Split:
    def stacked(name: str) -> Tensor:
        return torch.stack([getattr(clip, name) for clip in clips])

    raw, real, count = stacked("raw"), stacked("later"), len(clips)
    return Split(
        stacked("states"), stacked("saliency"), stacked("absolute"), raw,
        torch.full((count,), raw.shape[1]), nearest(real, codes),
        torch.full((count,), float(WANTED)), real, torch.zeros(count),
    )


def centres(rows: Tensor, count: int, seed: int, rounds: int = 30) -> Tensor:
    """k-means centres [count, D] of rows [S, D] (Lloyd's rounds from random rows).

    A centre that nothing is near to moves to the row that is farthest from its own.
    """
    generator = torch.Generator().manual_seed(seed)
    found = rows[torch.randperm(len(rows), generator=generator)[:count]].clone()
    for _ in range(rounds):
        distance, owner = torch.cdist(rows, found).min(1)
        sizes = torch.bincount(owner, minlength=len(found))
        sums = torch.zeros_like(found).index_add_(0, owner, rows)
        found = sums / sizes.clamp_min(1)[:, None]
        empty = (sizes == 0).nonzero().flatten()
        found[empty] = rows[distance.topk(len(empty)).indices]
    return found


def nearest(rows: Tensor, codes: Tensor) -> Tensor:
    """int64, the index of the nearest code of each row."""
    return torch.cdist(rows, codes).argmin(-1)


def _pool(layer: Tensor, side: int) -> Tensor:
    """[T, patches, D] of a square to [T, side^2, D]."""
    width = int(layer.shape[1] ** 0.5)
    square = layer.unflatten(1, (width, width)).permute(0, 3, 1, 2)
    return functional.adaptive_avg_pool2d(square, side).flatten(2).mT


def _batches(frames: Iterable[Any], size: int) -> Iterable[Tensor]:
    held: list[Tensor] = []
    for frame in frames:
        held.append(torch.from_numpy(frame.copy()))
        if len(held) == size:
            yield torch.stack(held)
            held = []
    if held:
        yield torch.stack(held)


def descriptors(clips: Tensor) -> Tensor:
    """What the Fréchet distance compares: mean state of a clip and mean change from frame to frame.

    Args:
        clips: [S, F, D] states of frames.

    Returns:
        [S, 2 D].
    """
    change = (clips[:, 1:] - clips[:, :-1]).abs().mean(1)
    return torch.cat((clips.mean(1), change), 1)
