"""ImageNet-1K (ILSVRC2012): paths of images with their classes.

Images lie in a folder for each class (``n01440764/n01440764_18.JPEG``) or, for the validation
split, flat (``ILSVRC2012_val_00000001.JPEG``) with the answers in a file: Kaggle's
``LOC_val_solution.csv``, or the development kit's ``ILSVRC2012_validation_ground_truth.txt``,
whose numbers need ``map_clsloc.txt`` (both are in the kit of 2015 as well, and equal). They are not
positions in ``LOC_synset_mapping.txt``, which is sorted by WordNet id.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qm_vllm_eval.datasets.published import (
    PUBLISHED,
    PublishedRows,
    absent,
    file_problem,
    find,
    read_lines,
    source_path,
)
from qm_vllm_eval.datasets.rows import DataRow, DataSetError

IMAGENET = PUBLISHED["imagenet"]
CLASSES = 1000
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
GROUND_TRUTH_2015 = "ILSVRC2015_clsloc_validation_ground_truth.txt"
SOLUTION = "LOC_val_solution.csv"
MAPPING = "LOC_synset_mapping.txt"
NUMBERS = "map_clsloc.txt"
_KITS = ("", "devkit/data", "ILSVRC/devkit/data", "ILSVRC2012_devkit_t12/data", "data")
_FOLDERS = {
    "train": ("train", "ILSVRC/Data/CLS-LOC/train", "Data/CLS-LOC/train", "ILSVRC2012_img_train"),
    "validation": ("val", "ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val", "ILSVRC2012_img_val",
                   "validation"),
}  # fmt: skip
_WNID = re.compile(r"n\d{8}")
_IMAGE = (".jpeg", ".jpg")


@dataclass(frozen=True)
class ImageNetRow(DataRow):
    """One image.

    Attributes:
        image: path of the JPEG file. wnid: the WordNet id of its class.
        label: place of ``wnid`` among all sorted ones, from 0; -1 in a row without class.
        words: what the class is called; "" without ``LOC_synset_mapping.txt``.
    """

    image: Path = Path()
    wnid: str = ""
    label: int = -1
    words: str = ""


_Read = Callable[[Counter[str]], Iterator[ImageNetRow]]


def open_imagenet(
    source: str | Path,
    split: str = "validation",
    *,
    answers: str | Path | None = None,
    synsets: str | Path | None = None,
) -> PublishedRows[ImageNetRow]:
    """A split of ImageNet-1K, sorted by class folder and file name.

    The classes are those of ``synsets``; without such a file they are the class folders (or the
    classes that the answers name), so that a part of the set then has labels of its own.

    Args:
        source: the set's folder, as Kaggle or image-net.org lay it out, or the folder of the
            split itself.
        split: "train" or "validation".
        answers: file with the classes of flat images; None: looked for below ``source``.
        synsets: ``LOC_synset_mapping.txt`` or ``map_clsloc.txt``; None: looked for as well.

    Raises:
        DataSetError: nothing is there, or the classes of flat images are nowhere.
    """
    root = source_path(IMAGENET, source, split)
    if not root.is_dir():
        raise DataSetError(f"{root} is no folder; give the folder of the images")
    folder = find(root, _FOLDERS[split]) or root
    named = _file(synsets, root, (MAPPING, NUMBERS))
    words = _words(named) if named else {}
    below = _below(folder)
    folders = [path for path in below if path.is_dir() and _WNID.fullmatch(path.name)]
    if folders:
        classes = sorted(words) or [path.name for path in folders]
        return PublishedRows(folder.name, _of_folders(folders, classes, words), classes=classes)
    images = {path.stem: path for path in below if path.suffix.lower() in _IMAGE}
    if not images:
        raise absent(IMAGENET, f"{folder} has neither class folders (n01440764) nor images")
    if split == "train":
        raise DataSetError(f"{folder} has no class folders (n01440764), which 'train' needs")
    told = _answers(
        _file(answers, root, (SOLUTION, GROUND_TRUTH, GROUND_TRUTH_2015)), root, synsets, folder
    )
    classes = sorted(words) or sorted({wnid for wnid in told.values() if _WNID.fullmatch(wnid)})
    return PublishedRows(folder.name, _flat(folder, images, told, classes, words), classes=classes)


def _below(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise DataSetError(f"{folder} cannot be read: {error.strerror or error}") from error


def _of_folders(folders: list[Path], classes: list[str], words: dict[str, str]) -> _Read:
    labels = {wnid: label for label, wnid in enumerate(classes)}

    def read(skipped: Counter[str]) -> Iterator[ImageNetRow]:
        for folder in folders:
            for image in _below(folder):
                if image.suffix.lower() not in _IMAGE:
                    skipped["no JPEG file"] += 1
                    continue
                yield _row(f"{folder.name}/{image.stem}", image, folder.name, labels, words)

    return read


def _flat(
    folder: Path,
    images: dict[str, Path],
    told: dict[str, str],
    classes: list[str],
    words: dict[str, str],
) -> _Read:
    labels = {wnid: label for label, wnid in enumerate(classes)}

    def read(skipped: Counter[str]) -> Iterator[ImageNetRow]:
        for name in sorted({*images, *told}):
            image = images.get(name, folder / f"{name}.JPEG")
            yield _row(name, image, told.get(name, ""), labels, words)

    return read


def _row(
    row_id: str, image: Path, wnid: str, labels: dict[str, int], words: dict[str, str]
) -> ImageNetRow:
    reason = file_problem(image, "image")
    if not wnid:
        reason = f"the answers do not name the image {image.name}"
    elif wnid not in labels:
        reason = f"{row_id} has the class {wnid!r:.40}, which is none of the {len(labels)} known"
    return ImageNetRow(row_id, image, wnid, labels.get(wnid, -1), words.get(wnid, ""),
                       reason=reason)  # fmt: skip


def _file(given: str | Path | None, root: Path, names: tuple[str, ...]) -> Path | None:
    if given is None:
        return find(root, [f"{kit}/{name}".lstrip("/") for name in names for kit in _KITS])
    path = Path(given).expanduser()
    if not path.is_file():
        raise DataSetError(f"there is no file {path}; give one of {', '.join(names)}")
    return path


def _words(file: Path) -> dict[str, str]:
    """Names by WordNet id; of ``map_clsloc.txt`` the number between them is left out."""
    found = {}
    for line in read_lines(file):
        wnid, _, rest = line.partition(" ")
        if not _WNID.fullmatch(wnid):
            raise DataSetError(f"{file} has the line {line!r:.60}, which begins with no class id")
        found[wnid] = re.sub(r"^\d+ ", "", rest).replace("_", " ")
    return found


def _answers(
    file: Path | None, root: Path, synsets: str | Path | None, folder: Path
) -> dict[str, str]:
    """WordNet id by the image's name without suffix."""
    if file is None:
        raise absent(
            IMAGENET,
            f"{folder} has images without class folders, and {SOLUTION} or {GROUND_TRUTH} with "
            "their classes is not there",
        )
    if file.suffix == ".csv":
        return _solution(file)
    numbers = _file(synsets, root, (NUMBERS,))
    by_number: dict[int, str] = {}
    for line in read_lines(numbers) if numbers else []:
        match = re.fullmatch(r"(n\d{8}) (\d+) \S+", line)
        if not match:
            raise DataSetError(
                f"{numbers} has the line {line!r:.60}, not 'n02119789 1 kit_fox'; {GROUND_TRUTH} "
                f"needs {NUMBERS}: its numbers are those of the development kit, and {MAPPING} "
                "is in another order"
            )
        by_number[int(match[2])] = match[1]
    if not by_number:
        raise absent(
            IMAGENET,
            f"{file} holds the numbers of the development kit, which need {NUMBERS} (in the kit "
            f"of later years); {MAPPING} is in another order; or give {SOLUTION}",
        )
    told = {}
    for number, line in enumerate(read_lines(file), 1):
        known = by_number.get(int(line)) if line.isdecimal() else None
        told[f"ILSVRC2012_val_{number:08d}"] = known or f"number {line}"
    return told


def _solution(file: Path) -> dict[str, str]:
    lines = csv.reader(read_lines(file))
    try:
        if next(lines, []) != ["ImageId", "PredictionString"]:
            raise DataSetError(f"{file} does not begin with ImageId,PredictionString")
        return {cells[0]: (cells[-1].split() or [""])[0] for cells in lines if len(cells) == 2}
    except csv.Error as error:
        raise DataSetError(f"{file} is no sound csv file: {error}") from error
