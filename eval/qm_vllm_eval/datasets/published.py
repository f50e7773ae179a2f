"""Published data sets: where each comes from, under which licence, and what their loaders share.

None of them is part of this project. :mod:`qm_vllm_eval.datasets.catalogue` opens them by name.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

from qm_vllm_eval.datasets.rows import DataSetError, Record, Row


@dataclass(frozen=True)
class Published:
    """One published data set.

    Attributes:
        name: what its authors call it.
        address: where to get it, without "https://".
        licence: in a few words; the page at the address decides.
        splits: of "train", "validation", "test" those that are published.
        hub: its name on the hub if the loader reads it from there, else None.
    """

    name: str
    address: str
    licence: str
    splits: tuple[str, ...]
    hub: str | None = None


_ALL = ("train", "validation", "test")
PUBLISHED = {
    "booksum": Published(
        "BookSum", "huggingface.co/datasets/kmfoda/booksum", "BSD-3-Clause, says its page",
        _ALL, "kmfoda/booksum",
    ),
    "ego4d_nlq": Published(
        "Ego4D NLQ", "ego4d-data.org", "Ego4D's own agreement, to be signed by everyone",
        ("train", "validation"),
    ),
    "wikitext": Published(
        "WikiText-103", "huggingface.co/datasets/Salesforce/wikitext",
        "CC-BY-SA-3.0 and GFDL, says its page", _ALL, "Salesforce/wikitext",
    ),
    "imagenet": Published(
        "ImageNet-1K (ILSVRC2012)", "image-net.org/download.php",
        "terms of access to be agreed to: non-commercial research and education only",
        ("train", "validation"),
    ),
    "ucf101": Published(
        "UCF101", "www.crcv.ucf.edu/data/UCF101.php", "not stated here: see its page",
        ("train", "test"),
    ),
    "coco_captions": Published(
        "MSCOCO captions", "cocodataset.org",
        "annotations CC-BY-4.0, images under Flickr's terms of use", _ALL,
    ),
    "something": Published(
        "Something-Something v2",
        "developer.qualcomm.com/software/ai-datasets/something-something",
        "Qualcomm's licence for research use", _ALL,
    ),
    "tvqa": Published(
        "TVQA", "github.com/jayleicn/TVQA (data/README.md)",
        "frames under TVQA's own agreement, to be signed; questions: see its page", _ALL,
    ),
    "qasper": Published(
        "QASPER", "allenai.org/data/qasper", "CC-BY-4.0", _ALL, "allenai/qasper",
    ),
    "longbench": Published(
        "LongBench", "github.com/THUDM/LongBench (a selection: MilkThink-Lab/MiniLongBench)",
        "MIT, its texts under licences of their own: see its page", ("test",), "THUDM/LongBench",
    ),
    "leval": Published(
        "L-Eval", "github.com/OpenLMLab/LEval",
        "GPL-3.0, its texts under licences of their own: see its page", ("test",), "L4NLP/LEval",
    ),
    "squality": Published(
        "SQuALITY", "github.com/nyu-mll/SQuALITY", "CC-BY-4.0; the stories: public domain", _ALL,
    ),
    "qmsum": Published("QMSum", "github.com/Yale-LILY/QMSum", "MIT", _ALL),
    "babi": Published("bAbI", "research.facebook.com/downloads/babi", "CC-BY-3.0", _ALL[::2]),
}  # fmt: skip
"""By the names that :func:`qm_vllm_eval.datasets.catalogue.open_published` takes."""


class PublishedRows(Generic[Row]):
    """Rows of one split; iterate over it as often as needed.

    ``skipped`` counts by reason, after a full iteration, what of the files gave no row. A row
    whose ``row_id`` came before has a reason and another id.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[Counter[str]], Iterator[Row]],
        *,
        classes: Sequence[str] = (),
    ) -> None:
        """See the loaders' ``open_...`` functions.

        Args:
            read: starts a new reading of the same rows in the same order; counts in the counter
                what it leaves out.
            classes: what the rows' labels stand for, by label.
        """
        self.name = name
        self.classes = tuple(classes)
        self.skipped: Counter[str] = Counter()
        self._read = read

    def __iter__(self) -> Iterator[Row]:
        """Rows in the order of the files.

        Raises:
            DataSetError: a file cannot be read (further).
        """
        self.skipped = skipped = Counter[str]()
        seen: Counter[str] = Counter()
        for row in self._read(skipped):
            seen[row.row_id] += 1
            if seen[row.row_id] > 1:
                reason = row.reason or f"{row.row_id} is in {self.name} more than once"
                row = replace(row, row_id=f"{row.row_id}#{seen[row.row_id]}", reason=reason)
            yield row


def source_path(of: Published, source: str | Path, split: str) -> Path:
    """The path of a source that has to be there.

    Raises:
        DataSetError: no such split, or nothing there; says where the set can be got.
    """
    check_split(of, split)
    path = Path(source).expanduser()
    if not path.exists():
        raise absent(of, f"there is no file or folder {path}")
    return path


def check_split(of: Published, split: str) -> None:
    """Raises DataSetError if the set has no such split."""
    if split not in of.splits:
        raise DataSetError(f"{of.name} has no split {split!r}; there are {', '.join(of.splits)}")


def absent(of: Published, problem: str) -> DataSetError:
    """The error for data that are not there, with the address and licence of the set."""
    return DataSetError(f"{problem}; get {of.name} from {of.address} (licence: {of.licence})")


def found(of: Published, root: Path, names: Sequence[str], what: str) -> Path:
    """The first of some files or folders below a folder.

    Args:
        names: paths relative to ``root``, in order of preference; may hold ``*``.
        what: what is looked for, for the sentence.

    Raises:
        DataSetError: none is there.
    """
    path = find(root, names)
    if path is None:
        raise absent(of, f"{root} has no {what} ({', '.join(names)})")
    return path


def find(root: Path, names: Sequence[str]) -> Path | None:
    """As :func:`found`, but None if none is there."""
    for name in names:
        for path in sorted(root.glob(name)) if "*" in name else [root / name]:
            if path.exists():
                return path
    return None


def load_json(file: Path, kind: type, holds: str) -> Any:
    """What a JSON file holds.

    Args:
        kind: the type it must have, ``list`` or ``dict``. holds: what that is, for the sentence.

    Raises:
        DataSetError: it cannot be read, is no JSON, or of another type.
    """
    try:
        held = json.loads(file.read_bytes())
    except OSError as error:
        raise DataSetError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataSetError(f"{file} is no JSON: {error}") from error
    if not isinstance(held, kind):
        raise DataSetError(f"{file} holds a {type(held).__name__}; it should be {holds}")
    return held


def read_lines(file: Path) -> list[str]:
    """The lines of a small text file in UTF-8, without empty ones.

    Raises:
        DataSetError: it cannot be read.
    """
    try:
        held = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataSetError(f"{file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataSetError(f"{file} is no text in UTF-8: {error}") from error
    return [line.strip() for line in held.split("\n") if line.strip()]


def file_problem(path: Path, what: str) -> str:
    """Why an image or video cannot be used, "" if it is there; its content is not looked at.

    Args:
        what: "image" or "video".
    """
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError as error:
        return f"the {what} {path} cannot be read: {error.strerror or error}"
    if size is None:
        return f"there is no {what} {path}"
    return "" if size else f"the {what} {path} is empty"


def clean(value: Any) -> str:
    """A field as text without space at its ends; null and NaN are empty.

    Half of a surrogate pair, which JSON allows and UTF-8 does not, becomes U+FFFD.
    """
    if value is None or value != value:
        return ""
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()


def is_name(value: Any) -> bool:
    """Whether a field can be the name of one file: ASCII text without a folder, not too long."""
    return isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z0-9_][\w.-]{0,199}", value, re.A))


def is_hub_name(source: str | Path) -> bool:
    """Whether this is OWNER/NAME of the hub and no path that is there."""
    path = Path(source).expanduser()
    named = re.fullmatch(r"[\w-]+/[\w.-]+", str(source)) is not None
    return named and not path.suffix and not path.exists()


def hub_records(
    of: Published, name: str, config: str, split: str, required: Sequence[str]
) -> Callable[[], Iterator[Record]]:
    """Starts readings of a data set on the hub, streamed; needs the package ``datasets``.

    Args:
        config: which of its subsets. required: columns that have to be there.

    Raises:
        DataSetError: the package or the data set is not there; while reading: the hub breaks
            off, or a column is missing.
    """
    try:
        from datasets import load_dataset  # type: ignore[import-not-found,import-untyped]
    except ImportError as error:
        raise absent(
            of,
            f"there is no file or folder {name} here, and to read that name from the hub needs "
            f"the package datasets ({error}); run `pip install datasets`, or give local files",
        ) from error
    try:
        table = load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # the package has a dozen ways to say that the hub is not there
        raise DataSetError(f"{name} could not be opened on the hub: {error}") from error

    def read() -> Iterator[Record]:
        rows = iter(table)
        number = 0
        while True:
            try:
                values = next(rows, None)
            except Exception as error:
                raise DataSetError(f"{name} broke off after row {number}: {error}") from error
            if values is None:
                return
            number += 1
            missing = [column for column in required if column not in values]
            if missing:
                raise DataSetError(f"{name} row {number} has no column {missing[0]!r}")
            yield Record(f"{name} row {number}", values)

    return read
