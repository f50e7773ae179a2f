"""What rows of long-input data sets share: an id, a reason if unusable, streaming files.

:func:`records` reads parquet, csv and jsonl a piece at a time, so a file may be larger than the
memory. What is wrong with one record goes with that record; what is wrong with the whole file is
a :class:`DataSetError`.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qm_vllm import json_lines

SUFFIXES = (".parquet", ".csv", ".jsonl")
BATCH = 16
"""Records of a parquet file that are in memory at the same time; a record may hold a chapter."""

_LARGEST_CELL = 2**31 - 1  # the csv module's own limit, 128 KiB, is shorter than a chapter
_SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


class DataSetError(RuntimeError):
    """A data set cannot be read; the sentence names the file and says what to do about it."""


@dataclass(frozen=True)
class DataRow:
    """One row of a data set.

    Attributes:
        row_id: unique in the data set; the same in every process and for every file format.
        reason: why the row cannot be used; empty if it can.
    """

    row_id: str
    reason: str = field(default="", kw_only=True)

    @property
    def usable(self) -> bool:
        """False if there is a reason not to run this row."""
        return not self.reason


Row = TypeVar("Row", bound=DataRow)


def unusable(row: Row, reason: str) -> Row:
    """The same row with a reason not to use it; a reason it had before stays."""
    return row if row.reason else dataclasses.replace(row, reason=reason)


def within_length(row: Row, text: str, count: Callable[[str], int], most: int) -> Row:
    """The row, with a reason if its text has more than ``most`` tokens by ``count``."""
    tokens = count(text)
    if tokens <= most:
        return row
    return unusable(row, f"{row.row_id} has {tokens} tokens, more than the {most} allowed")


@dataclass(frozen=True)
class Record:
    """One line of a file.

    Attributes:
        place: "test.csv row 12": the file and the row, counted from 1 without the header.
        values: by column. reason: why it could not be read; then there are no values.
    """

    place: str
    values: dict[str, Any]
    reason: str = ""


def files_of(path: Path, split: str) -> list[Path]:
    """The data files behind a path: itself, or a folder's files of one split, in order.

    A file belongs to a split if its name, or a folder between it and ``path``, begins with the
    split's name ("dev" and "val" count as validation). A folder whose only file names no split
    is that one file.

    Raises:
        DataSetError: nothing is there, or nothing of that split or of a known kind.
    """
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataSetError(f"{path} is of no known kind; give {', '.join(SUFFIXES)}")
        return [path]
    if not path.is_dir():
        raise DataSetError(f"there is no file or folder {path}; name one that exists")
    known = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in SUFFIXES)
    if not known:
        raise DataSetError(f"the folder {path} holds no {', '.join(SUFFIXES)} file")
    chosen = [file for file in known if _split_of(file, path) == split]
    if chosen:
        return chosen
    if len(known) == 1 and _split_of(known[0], path) is None:
        return known
    raise DataSetError(
        f"the folder {path} has no file of the split {split!r}; it has "
        f"{', '.join(file.name for file in known[:4])}"
    )


def _split_of(file: Path, root: Path) -> str | None:
    for part in reversed(file.relative_to(root).parts):
        for split, names in _SPLIT_NAMES.items():
            if part.lower().startswith(names):
                return split
    return None


def records(file: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Record]:
    """The records of a parquet, csv or jsonl file, one at a time.

    Args:
        required: columns that have to be there. optional: columns to read where they are.

    Raises:
        DataSetError: the file cannot be read (further), or has no such column (for jsonl a
            missing column is a reason of its record instead).
    """
    readers = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}
    if file.suffix not in readers:
        raise DataSetError(f"{file} is of no known kind; give {', '.join(SUFFIXES)}")
    try:
        file.open("rb").close()  # what Arrow says of a missing file is less plain
        yield from readers[file.suffix](file, required, optional)
    except OSError as error:
        raise DataSetError(f"{file} cannot be read: {error.strerror or error}") from error


def _parquet(file: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[Record]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataSetError(
            f"{file} needs pyarrow to be read ({error}); run `pip install pyarrow`"
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            _check_columns(file, names, required)
            wanted = [name for name in names if name in required or name in optional]
            for batch in table.iter_batches(batch_size=BATCH, columns=wanted):
                for index in range(len(batch)):
                    number += 1
                    place = f"{file.name} row {number}"
                    try:
                        (values,) = batch.slice(index, 1).to_pylist()
                        values = {name: _decoded(value) for name, value in values.items()}
                    except (ValueError, OverflowError) as error:  # no UTF-8, no date of Python's
                        yield Record(place, {}, f"{place} cannot be decoded: {error}")
                        continue
                    yield Record(place, values)
    except pa.ArrowException as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataSetError(
            f"{file} is no sound parquet file after row {number}: {first}"
        ) from error


def _decoded(value: Any) -> Any:
    """A cell; the bytes of a binary column, which is how some writers store text, as text."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, list):
        return [_decoded(part) for part in value]
    if isinstance(value, dict):
        return {name: _decoded(part) for name, part in value.items()}
    return value


def _csv(file: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[Record]:
    csv.field_size_limit(_LARGEST_CELL)
    number = 0
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            names = next(reader, [])
            _check_columns(file, names, required)
            wanted = [name for name in names if name in required or name in optional]
            for cells in reader:
                if not cells:
                    continue
                number += 1
                place = f"{file.name} row {number}"
                if len(cells) != len(names):
                    reason = f"{place} has {len(cells)} cells, but there are {len(names)} columns"
                    yield Record(place, {}, reason)
                    continue
                cell = dict(zip(names, cells, strict=True))
                yield Record(place, {name: cell[name] for name in wanted})
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataSetError(f"{file} is no sound csv file after row {number}: {error}") from error


def _jsonl(file: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[Record]:
    wanted = [*required, *optional]
    with file.open("rb") as lines:
        for number, line in enumerate((line for line in lines if line.strip()), 1):
            place = f"{file.name} row {number}"
            try:
                values = json_lines.parse(line, nan=True)
            except ValueError as error:
                yield Record(place, {}, f"{place} is no JSON: {error}")
                continue
            if not isinstance(values, dict):
                yield Record(place, {}, f"{place} is a {type(values).__name__}, not an object")
                continue
            missing = [name for name in required if name not in values]
            if missing:
                yield Record(place, {}, f"{place} has no column {missing[0]!r}")
                continue
            yield Record(place, {name: values[name] for name in wanted if name in values})


def _check_columns(file: Path, names: Sequence[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in names]
    if missing:
        held = ", ".join(map(str, names[:20])) or "no column at all"
        raise DataSetError(f"{file} has no column {missing[0]!r}; it has {held}")
    twice = sorted({name for name in required if list(names).count(name) > 1})
    if twice:
        raise DataSetError(f"{file} has the column {twice[0]!r} more than once")
