"""WikiText-103: whole Wikipedia articles, raw or tokenised, from local files or the hub.

Read are ``wiki.train.raw`` or ``wiki.train.tokens`` (also ``valid``, ``test``), and parquet files
with a column ``text`` that holds one line a record, as on the hub. An article begins at a
heading of the first level, `` = Title = ``, between empty lines; sections have more equals
signs. One article is in memory at a time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qm_vllm_eval.datasets.published import (
    PUBLISHED,
    PublishedRows,
    absent,
    check_split,
    hub_records,
    is_hub_name,
    source_path,
)
from qm_vllm_eval.datasets.rows import DataRow, DataSetError, Record, files_of, records

WIKITEXT = PUBLISHED["wikitext"]
HUB_CONFIG = "wikitext-103-raw-v1"
_FILE_SPLITS = {"train": "train", "validation": "valid", "test": "test"}
_HEADING = re.compile(r"= (?!=)(.*\S)(?<!=) =")


@dataclass(frozen=True)
class WikiTextRow(DataRow):
    """One article.

    Attributes:
        text: all of it with its headings, line by line as published.
        title: the heading of the first level.
    """

    text: str = field(default="", repr=False)
    title: str = ""


@dataclass
class _Line:
    """A line without its end; reason: why it could not be read."""

    text: str
    place: str
    reason: str = ""

    @property
    def title(self) -> str:
        heading = _HEADING.fullmatch(self.text.strip())
        return heading[1] if heading else ""

    @property
    def blank(self) -> bool:
        return not self.reason and not self.text.strip()


def open_wikitext(
    source: str | Path, split: str = "test", config: str = HUB_CONFIG
) -> PublishedRows[WikiTextRow]:
    """A split of WikiText-103. A row's id is its number in the split, in every format.

    Args:
        source: a file, or a folder with ``wiki.SPLIT.raw``, ``wiki.SPLIT.tokens`` or parquet
            files; or the name on the hub, which needs the package ``datasets`` and the network.
        split: "train", "validation" or "test"; a single file is read whole whatever it is.
        config: the subset to read from the hub.

    Raises:
        DataSetError: nothing is there, more than one variant is, or the hub cannot be asked;
            while iterating: a file cannot be read, or has no article.
    """
    if is_hub_name(source):
        check_split(WIKITEXT, split)
        stream = hub_records(WIKITEXT, str(source), config, split, ("text",))
        return _rows(str(source), lambda: _of_records(stream()))
    path = source_path(WIKITEXT, source, split)
    files = _files(path, split)

    def read() -> Iterator[_Line]:
        for file in files:
            if file.suffix in (".raw", ".tokens"):
                yield from _of_text(file)
            else:
                yield from _of_records(records(file, ("text",)))

    return _rows(path.name, read)


def _files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix in (".raw", ".tokens") else files_of(path, split)
    texts = sorted(
        file
        for suffix in ("raw", "tokens")
        for file in path.rglob(f"wiki.{_FILE_SPLITS[split]}.{suffix}")
    )
    try:
        files = texts or files_of(path, split)
    except DataSetError as error:
        raise absent(WIKITEXT, f"{error}, and no wiki.{_FILE_SPLITS[split]}.raw") from error
    if len(texts) > 1 or len({file.parent for file in files}) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in files[:4])
        raise DataSetError(f"{path} has more than one variant: {names}; give the folder of one")
    return files


def _rows(name: str, lines: Callable[[], Iterator[_Line]]) -> PublishedRows[WikiTextRow]:
    def read(skipped: Counter[str]) -> Iterator[WikiTextRow]:
        number = 0
        for title, body in _articles(lines()):
            if title:
                number += 1
                yield _row(f"article-{number:05d}", title, body)
            elif body:
                what = "text before the first heading"
                yield WikiTextRow("article-00000", reason=f"{body[0].place}: {what}")
        if not number:
            raise DataSetError(
                f"{name} has no heading ' = Title = ' between empty lines; give the files of "
                "WikiText-103"
            )

    return PublishedRows(name, read)


def _articles(lines: Iterator[_Line]) -> Iterator[tuple[str, list[_Line]]]:
    """Title and lines of each article; first, with an empty title, what comes before."""
    title, body = "", list[_Line]()
    before = _Line("", "")
    held: _Line | None = None  # a heading, if the next line is empty
    for line in lines:
        if held is not None:
            if line.blank:
                yield title, body
                title, body = held.title, [held]
            elif title:
                body.append(held)
            held = None
        if before.blank and line.title:
            held = line
        elif title or (not body and not line.blank):
            body.append(line)  # of what belongs to no article the first line is enough
        before = line
    if held is not None:
        yield title, body
        title, body = held.title, [held]
    yield title, body


def _row(row_id: str, title: str, body: list[_Line]) -> WikiTextRow:
    bad = next((line.reason for line in body if line.reason), "")
    if not bad and all(line.blank for line in body[1:]):
        bad = f"{body[0].place}: the article {title!r} has no text"
    if bad:
        return WikiTextRow(row_id, title=title, reason=bad)
    return WikiTextRow(row_id, text="\n".join(line.text for line in body).strip(), title=title)


def _of_text(file: Path) -> Iterator[_Line]:
    try:
        with file.open("rb") as held:
            for number, line in enumerate(held, 1):
                place = f"{file.name} line {number}"
                try:
                    yield _line(line.decode("utf-8"), place)
                except UnicodeDecodeError as error:
                    yield _Line("", place, f"{place} cannot be decoded: {error}")
    except OSError as error:
        raise DataSetError(f"{file} cannot be read: {error.strerror or error}") from error


def _of_records(held: Iterator[Record]) -> Iterator[_Line]:
    for record in held:
        text = record.values.get("text")
        if record.reason:
            yield _Line("", record.place, record.reason)
        elif not isinstance(text, str):
            reason = f"{record.place} has a {type(text).__name__} as 'text'"
            yield _Line("", record.place, reason)
        else:
            yield _line(text, record.place)


def _line(text: str, place: str) -> _Line:
    text = text.rstrip("\r\n")
    return _Line(text if text.strip() else "", place)
