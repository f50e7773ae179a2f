"""MSCOCO captions: paths of images with all their captions.

Read are ``captions_train2017.json`` and ``captions_val2017.json`` (also 2014) with ``images`` and
``annotations``, and Karpathy's split of 2014, ``dataset_coco.json``. A file is in memory whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qm_vllm_eval.datasets.published import (
    PUBLISHED,
    PublishedRows,
    clean,
    file_problem,
    find,
    found,
    is_name,
    load_json,
    source_path,
)
from qm_vllm_eval.datasets.rows import DataRow, DataSetError

COCO = PUBLISHED["coco_captions"]
YEARS = (2017, 2014)
KARPATHY = "dataset_coco.json"
KARPATHY_SPLITS = {"train": ("train", "restval"), "validation": ("val",), "test": ("test",)}
_SHORT = {"train": "train", "validation": "val", "test": "test"}
NO_CAPTION = "the image has no caption"


@dataclass(frozen=True)
class CocoRow(DataRow):
    """One image.

    Attributes:
        image: path of the JPEG file. image_id: as in the annotations.
        references: its captions in the order of the file, at least one in a usable row.
        size: width and height in pixels as the annotations say; (0, 0) if they do not.
    """

    image: Path = Path()
    image_id: int = -1
    references: tuple[str, ...] = field(default=(), repr=False)
    size: tuple[int, int] = (0, 0)


_Read = Callable[[Counter[str]], Iterator[CocoRow]]


def open_coco(
    source: str | Path, split: str = "validation", *, images: str | Path | None = None
) -> PublishedRows[CocoRow]:
    """A split of the captions in the order of the images in the file.

    Args:
        source: an annotation file, or the set's folder with ``annotations/``; there 2017 is
            taken before 2014. "test" is only in Karpathy's split, whose "train" has "restval".
        split: "train", "validation" or "test"; ``captions_....json`` is read whole whatever it is.
        images: folder with ``val2017/`` or with the images themselves; None: looked for beside
            the annotations.

    Raises:
        DataSetError: nothing is there, or a file is no JSON of this form.
    """
    path = source_path(COCO, source, split)
    short = _SHORT[split]
    names = [f"captions_{short}{year}.json" for year in YEARS if split != "test"] + [KARPATHY]
    file = path
    if path.is_dir():
        below = [f"{folder}{name}" for name in names for folder in ("annotations/", "")]
        file = found(COCO, path, below, "annotations")
    root = path if path.is_dir() else file.parent
    if images is not None:
        folders = [Path(images).expanduser()]
    else:
        folders = [root, root / "images", root.parent, root.parent / "images"]
    held = load_json(file, dict, "an object with 'images'")
    if not isinstance(held.get("images"), list):
        raise DataSetError(f"{file} has no list 'images'; give {names[0]}")
    if isinstance(held.get("annotations"), list):
        return PublishedRows(file.name, _captions(file.name, held, folders))
    if held.get("dataset") == "coco" or file.name == KARPATHY:
        return PublishedRows(file.name, _karpathy(file.name, held["images"], split, folders))
    raise DataSetError(f"{file} has no list 'annotations'; give {names[0]}")


def _captions(name: str, held: dict[str, Any], folders: list[Path]) -> _Read:
    match = re.fullmatch(r"captions_(\w+)\.json", name)
    inner = match[1] if match else ""

    def read(skipped: Counter[str]) -> Iterator[CocoRow]:
        ids = {image.get("id") for image in held["images"]
               if isinstance(image, dict) and _is_id(image.get("id"))}  # fmt: skip
        texts: dict[int, list[str]] = {}
        for note in held["annotations"]:
            image = note.get("image_id") if isinstance(note, dict) else None
            if not isinstance(image, int) or image not in ids:
                skipped["caption of no image"] += 1
            elif not isinstance(note.get("caption"), str) or not note["caption"].strip():
                skipped["empty caption"] += 1
            else:
                texts.setdefault(image, []).append(clean(note["caption"]))
        for number, image in enumerate(held["images"]):
            place = f"{name} images[{number}]"
            if not isinstance(image, dict) or not _is_id(image.get("id")):
                yield CocoRow(place, reason=f"{place} has no 'id'")
                continue
            size = (image.get("width"), image.get("height"))
            yield _row(place, image["id"], image.get("file_name"), inner, folders,
                       texts.get(image["id"], []), size)  # fmt: skip

    return read


def _karpathy(name: str, images: list[Any], split: str, folders: list[Path]) -> _Read:
    def read(skipped: Counter[str]) -> Iterator[CocoRow]:
        for number, image in enumerate(images):
            place = f"{name} images[{number}]"
            if isinstance(image, dict) and image.get("split") not in KARPATHY_SPLITS[split]:
                continue
            if not isinstance(image, dict) or not _is_id(image.get("cocoid")):
                yield CocoRow(place, reason=f"{place} has no 'cocoid'")
                continue
            told = image.get("sentences")
            raw = [part.get("raw") for part in told if isinstance(part, dict)] \
                if isinstance(told, list) else []  # fmt: skip
            texts = [clean(text) for text in raw if isinstance(text, str) and text.strip()]
            inner = str(image.get("filepath"))
            yield _row(place, image["cocoid"], image.get("filename"),
                       inner if is_name(inner) else "", folders, texts, (0, 0))  # fmt: skip

    return read


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _row(
    place: str,
    image_id: int,
    name: Any,
    inner: str,
    folders: list[Path],
    texts: list[str],
    size: tuple[Any, Any],
) -> CocoRow:
    row_id = f"coco-{image_id:012d}"
    if not is_name(name):
        return CocoRow(row_id, image_id=image_id, reason=f"{place} has no file name")
    image = _image(name, inner, folders)
    reason = file_problem(image, "image") or ("" if texts else f"{place}: {NO_CAPTION}")
    known = (size[0], size[1]) if _is_id(size[0]) and _is_id(size[1]) else (0, 0)
    return CocoRow(row_id, image, image_id, tuple(texts), known, reason=reason)


def _image(name: str, inner: str, folders: list[Path]) -> Path:
    """Where the image is; if it is nowhere, where it should be."""
    names = [f"{part}/{name}" for part in (inner,) if part] + [name]
    for folder in folders:
        path = find(folder, names)
        if path is not None:
            return path
    return folders[0] / names[0]
