"""Something-Something v2: paths of videos with what is done in them.

Read are ``train.json``, ``validation.json`` and ``test.json`` (or ``something-something-v2-...``),
``labels.json``, ``test-answers.csv``, and videos ``ID.webm``. Templates in the annotations have
brackets ("Putting [something] onto [something]"), those in ``labels.json`` have none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qm_vllm_eval.datasets.published import (
    PUBLISHED,
    PublishedRows,
    absent,
    clean,
    file_problem,
    find,
    found,
    load_json,
    read_lines,
    source_path,
)
from qm_vllm_eval.datasets.rows import DataRow, DataSetError

SOMETHING = PUBLISHED["something"]
ANSWERS = "test-answers.csv"
_PREFIXES = ("", "labels/", "something-something-v2-", "labels/something-something-v2-")
_VIDEOS = ("20bn-something-something-v2", "videos", "videos/20bn-something-something-v2")


@dataclass(frozen=True)
class SomethingRow(DataRow):
    """One video.

    Attributes:
        video: path of the file. video_id: its name.
        caption: what is done, with the objects' names; "" in the test split.
        template: the same with "something" for the objects, as in ``labels.json``.
        placeholders: the objects' names, in the template's order; empty in the test split.
        label: the template's number in ``labels.json``, from 0; -1 where none is told.
    """

    video: Path = Path()
    video_id: str = ""
    caption: str = ""
    template: str = ""
    placeholders: tuple[str, ...] = ()
    label: int = -1


def open_something(
    source: str | Path, split: str = "validation", *, videos: str | Path | None = None
) -> PublishedRows[SomethingRow]:
    """A split of Something-Something v2 in the order of its file.

    Args:
        source: folder with the annotations (also in ``labels/``).
        split: "train", "validation" or "test"; the rows of "test" have labels only where
            ``test-answers.csv`` is there.
        videos: folder with the videos; None: looked for in and beside ``source``.

    Raises:
        DataSetError: nothing is there, or a file is no JSON of this form.
    """
    root = source_path(SOMETHING, source, split)
    if not root.is_dir():
        raise DataSetError(f"{root} is no folder; give the one that holds {split}.json")
    file = found(SOMETHING, root, [f"{prefix}{split}.json" for prefix in _PREFIXES], "annotations")
    names = [f"{prefix}labels.json" for prefix in _PREFIXES]
    labels = _labels(found(SOMETHING, root, names, "list of labels"))
    held = load_json(file, list, "a list of videos")
    told = {}
    if split == "test":
        path = find(root, [f"{prefix}{ANSWERS}" for prefix in _PREFIXES])
        told = dict(line.partition(";")[::2] for line in read_lines(path)) if path else {}
    if videos is not None:
        folder = Path(videos).expanduser()
        if not folder.is_dir():
            raise absent(SOMETHING, f"there is no folder {folder} with the videos")
    else:
        folder = find(root, _VIDEOS) or find(root.parent, _VIDEOS) or root

    def read(skipped: Counter[str]) -> Iterator[SomethingRow]:
        for number, entry in enumerate(held):
            yield _row(entry, f"{file.name}[{number}]", split, labels, told, folder)

    classes = sorted(labels, key=labels.__getitem__)
    return PublishedRows(file.name, read, classes=classes)


def plain(template: str) -> str:
    """A template without brackets, as ``labels.json`` has it."""
    return template.replace("[", "").replace("]", "")


def _labels(file: Path) -> dict[str, int]:
    held = load_json(file, dict, "an object with a number for each template")
    labels = {}
    for template, number in held.items():
        if not re.fullmatch(r"\d+", str(number)):
            raise DataSetError(f"{file} has {number!r:.40} as the number of {template!r:.60}")
        labels[plain(template)] = int(number)
    if sorted(labels.values()) != list(range(len(labels))):
        raise DataSetError(f"{file} does not number its templates 0 to {len(labels) - 1}")
    return labels


def _row(
    entry: Any,
    place: str,
    split: str,
    labels: dict[str, int],
    told: dict[str, str],
    folder: Path,
) -> SomethingRow:
    video_id = clean(entry.get("id")) if isinstance(entry, dict) else ""
    if not re.fullmatch(r"[0-9]{1,18}", video_id):
        return SomethingRow(place, reason=f"{place} has no number as 'id'")
    video = folder / f"{video_id}.webm"
    row = SomethingRow(f"ssv2-{video_id}", video, video_id, reason=file_problem(video, "video"))
    if split == "test":
        template = told.get(video_id, "")
        if not template:
            return row
    else:
        template = clean(entry.get("template"))
    objects = entry.get("placeholders", [])
    if not isinstance(objects, list) or not all(isinstance(name, str) for name in objects):
        return replace(row, reason=f"{place} has no list of names as 'placeholders'")
    row = replace(
        row,
        caption=clean(entry.get("label")),
        template=plain(template),
        placeholders=tuple(map(clean, objects)),
        label=labels.get(plain(template), -1),
    )
    if row.label < 0:
        return replace(row, reason=f"{place}: labels.json has no template {template!r:.80}")
    return row
