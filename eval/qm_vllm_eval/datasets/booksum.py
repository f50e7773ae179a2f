"""BookSum's chapters with their summaries, from the hub or from local files.

Read are parquet, csv and jsonl files with the columns of ``kmfoda/booksum``
(:data:`COLUMNS`). One published record is one summary; here one row is one chapter, and every
summary of it is a reference. Files are read twice: first for the summaries, which are kept
(about a tenth of the data), then for the chapters, of which only a few are in memory at a time.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from qm_vllm.texts import half_pair
from qm_vllm_eval.datasets.rows import DataRow, DataSetError, Record, files_of, records

HUB_NAME = "kmfoda/booksum"
COLUMNS = (
    "bid", "is_aggregate", "source", "chapter_path", "summary_path", "book_id", "summary_id",
    "content", "summary", "chapter", "chapter_length", "summary_name", "summary_url",
    "summary_text", "summary_analysis", "summary_length", "analysis_length",
)  # fmt: skip
REQUIRED = ("bid", "is_aggregate", "chapter", "summary_text")
OPTIONAL = ("source", "chapter_path", "book_id")

AGGREGATE = "covers several chapters"
EMPTY_CHAPTER = "column 'chapter' is empty"
EMPTY_SUMMARY = "column 'summary_text' is empty"
_TEXTS = {"chapter": EMPTY_CHAPTER, "summary_text": EMPTY_SUMMARY}

_TRUE, _FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no", "", "none", "nan")


@dataclass(frozen=True)
class BookSumRow(DataRow):
    """A chapter and what its summaries should say.

    Attributes:
        chapter: the text. references: summaries, at least one.
        title: what the data set calls the chapter ("book_id" or the file's name).
        sources: where each reference comes from.
    """

    chapter: str = field(default="", repr=False)
    references: tuple[str, ...] = field(default=(), repr=False)
    title: str = ""
    sources: tuple[str, ...] = ()


@dataclass
class _Chapter:
    """What the first reading found out about one chapter."""

    row_id: str
    title: str
    reason: str
    record: int = 0  # the record to take the text from, counted over all files
    references: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


class BookSum:
    """Rows of one split; iterate over it as often as needed.

    ``skipped`` counts by reason, after a full iteration, the records that gave no summary:
    aggregates, empty ones and unreadable ones. A chapter without any usable record, and a
    record that cannot be read, come out once as a row with a reason; aggregates do not.
    """

    def __init__(self, name: str, open_records: Callable[[], Iterator[Record]]) -> None:
        """See :func:`open_booksum`.

        Args:
            open_records: starts a new reading of the same records in the same order.
        """
        self.name = name
        self.skipped: Counter[str] = Counter()
        self._open = open_records

    def __iter__(self) -> Iterator[BookSumRow]:
        """Chapters in the order of their first usable record.

        Raises:
            DataSetError: the files cannot be read, or lack a column.
        """
        self.skipped = Counter()
        chapters: dict[str, _Chapter] = {}
        for number, record in enumerate(self._open()):
            self._note(number, record, chapters)
        due = {chapter.record: chapter for chapter in chapters.values()}
        for number, record in enumerate(self._open()):
            if number in due:
                yield _row(due[number], _text(record.values.get("chapter")))

    def _note(self, number: int, record: Record, chapters: dict[str, _Chapter]) -> None:
        if record.reason:
            self.skipped["cannot be read"] += 1
            chapters[f"record {number}"] = _Chapter(record.place, "", record.reason, number)
            return
        values = record.values
        aggregate = str(values["is_aggregate"]).strip().lower()
        if aggregate in _TRUE:
            self.skipped[AGGREGATE] += 1
            return
        key, row_id, title = _identity(record)
        summary = _text(values["summary_text"])
        problem = next(filter(None, (_unfit(values, name) for name in _TEXTS)), "")
        if aggregate not in _FALSE:
            problem = f"column 'is_aggregate' holds {values['is_aggregate']!r:.40}"
        if problem:
            self.skipped[problem] += 1
            reason = f"{record.place}: {problem}"
            chapters.setdefault(key, _Chapter(row_id, title, reason, number))
            return
        known = chapters.get(key)
        if known is None or known.reason:
            known = chapters[key] = _Chapter(row_id, title, "", number)
        if summary not in known.references:
            known.references.append(summary)
            known.sources.append(_text(values.get("source")))


def open_booksum(source: str | Path, split: str = "test") -> BookSum:
    """A split of BookSum.

    Args:
        source: a file or a folder with parquet, csv or jsonl files; or a name on the hub such
            as :data:`HUB_NAME`, which needs the package ``datasets`` and the network.
        split: "train", "validation" or "test"; a single file is read whole whatever it is.

    Raises:
        DataSetError: nothing is there, or the hub cannot be asked.
    """
    if split not in ("train", "validation", "test"):
        raise DataSetError(f"no split {split!r}; there are train, validation, test")
    path = Path(source).expanduser()
    if not path.exists() and re.fullmatch(r"[\w-]+/[\w.-]+", str(source)) and not path.suffix:
        return BookSum(str(source), _hub(str(source), split))
    files = files_of(path, split)

    def read() -> Iterator[Record]:
        for file in files:
            yield from records(file, REQUIRED, OPTIONAL)

    return BookSum(path.name, read)


def chat_prompt(row: BookSumRow, words: int = 150) -> list[dict[str, str]]:
    """Chat messages that ask for a summary: the chapter first, then the instruction.

    Args:
        words: the length to ask for.
    """
    instruction = (
        "The text above is one chapter of a book. Retell what happens in it as a summary of "
        f"about {words} words: who does what and why, in the order of the chapter. Write plain "
        "prose in the present tense, without headings, quotations or opinions."
    )
    return [{"role": "user", "content": f"{row.chapter}\n\n---\n\n{instruction}"}]


def _hub(name: str, split: str) -> Callable[[], Iterator[Record]]:
    try:
        from datasets import load_dataset  # type: ignore[import-not-found,import-untyped]
    except ImportError as error:
        raise DataSetError(
            f"there is no file or folder {name} here, and to read that name from the hub needs the "
            f"package datasets ({error}); run `pip install datasets`, or give a local parquet, csv "
            "or jsonl file"
        ) from error
    try:
        table = load_dataset(name, split=split, streaming=True)
    except Exception as error:  # the package has a dozen ways to say that the hub is not there
        raise DataSetError(f"{name} could not be opened on the hub: {error}") from error

    def read() -> Iterator[Record]:
        number = 0
        rows = iter(table)
        while True:
            try:
                values = next(rows, None)
            except Exception as error:
                raise DataSetError(f"{name} broke off after row {number}: {error}") from error
            if values is None:
                return
            number += 1
            missing = [column for column in REQUIRED if column not in values]
            if missing:
                raise DataSetError(f"{name} row {number} has no column {missing[0]!r}")
            yield Record(f"{name} row {number}", values)

    return read


def _row(known: _Chapter, chapter: str) -> BookSumRow:
    return BookSumRow(
        known.row_id,
        chapter="" if known.reason else chapter,
        references=tuple(known.references),
        title=known.title,
        sources=tuple(known.sources),
        reason=known.reason,
    )


def _identity(record: Record) -> tuple[str, str, str]:
    """Key, row id and title of a record's chapter, equal for every file format."""
    values = record.values
    book = _text(values["bid"]).removesuffix(".0") or "0"
    path, name = _text(values.get("chapter_path")), _text(values.get("book_id"))
    told = path or name or _text(values["chapter"]) or record.place
    key = hashlib.sha256(f"{book}\n{told}".encode()).hexdigest()
    stem = PurePosixPath(path).stem if path else name.rsplit(".", 1)[-1]
    slug = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:40] or "chapter"
    return key, f"{book}-{slug}-{key[:8]}", name or stem


def _unfit(values: Mapping[str, Any], name: str) -> str:
    """What is wrong with a column that has to hold text; "" if nothing is."""
    value = values[name]
    if isinstance(value, list | tuple | dict | bytes):
        return f"column {name!r} holds a {type(value).__name__}, not a text"
    half = half_pair(value) if isinstance(value, str) else ""
    if half:  # neither UTF-8 nor a tokenizer can hold it
        return f"column {name!r} holds {half}, which is no text"
    return "" if _text(value) else _TEXTS[name]


def _text(value: Any) -> str:
    """A cell as text; null and NaN, as pandas writes them, are empty.

    Half of a surrogate pair in a name, which JSON allows and UTF-8 does not, becomes U+FFFD.
    """
    if value is None or value != value:
        return ""
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()
