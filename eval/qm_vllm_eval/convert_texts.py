"""Turns unpacked Debian packages into the plain texts that :mod:`qm_vllm_eval.haystacks` reads.

``scripts/fetch_texts.sh`` downloads and unpacks the packages and runs this file as a command::

    python eval/qm_vllm_eval/convert_texts.py PACKAGE_ROOT TEXT_FOLDER

PACKAGE_ROOT is the folder that the packages were unpacked into. It stands alone (no import of
the project), so that it also runs from a checkout that is not installed.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import sys
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

AUSTEN = {
    "sensesensibility": "sense_and_sensibility.txt",
    "prideprejudice": "pride_and_prejudice.txt",
    "mansfieldpark": "mansfield_park.txt",
    "emma": "emma.txt",
    "northangerabbey": "northanger_abbey.txt",
    "persuasion": "persuasion.txt",
}
MOBY = {"mobydick": "moby_dick.txt"}
FAQ_FILE = "anarchist_faq.txt"
FILES = (*AUSTEN.values(), *MOBY.values(), FAQ_FILE)

_R_LIBRARY = "usr/lib/R/site-library"
_FAQ_FOLDER = "usr/share/doc/anarchism/markdown"
_FIRST_CHAPTER = re.compile(r"chapter (?:1|i)\b", re.IGNORECASE)
_END = re.compile(
    r"(?:the end|finis)\W*$|end of (?:the )?project gutenberg|a note on the text", re.IGNORECASE
)


class ConversionError(RuntimeError):
    """A package does not hold what this file expects."""


def r_object(database: Path, name: str) -> Any:
    """One object of an R lazy-load database (``database.rdx`` is the index of ``database.rdb``).

    Args:
        database: path of either file without its suffix.
        name: the object's name.

    Raises:
        ConversionError: no such file, no such object, or an unknown compression.
    """
    from rdata import conversion, parser

    index_file, data_file = database.with_suffix(".rdx"), database.with_suffix(".rdb")
    if not (index_file.is_file() and data_file.is_file()):
        raise ConversionError(f"no R data at {database}.rdx and .rdb")
    index = conversion.convert(parser.parse_data(_unpacked(index_file.read_bytes())))
    entry = index["variables"].get(name)
    if entry is None:
        raise ConversionError(f"{database} holds no {name}; it has {sorted(index['variables'])}")
    start, size = (int(number) for number in entry)
    chunk = data_file.read_bytes()[start : start + size]
    return conversion.convert(parser.parse_data(_lazy_chunk(chunk)))


def _lazy_chunk(chunk: bytes) -> bytes:
    """Serialised R bytes: four bytes of length, perhaps a letter for the method, the data."""
    body = chunk[4:]
    if body[:1] == b"2":
        return bz2.decompress(body[1:])
    if body[:1] == b"Z":
        return lzma.decompress(body[1:])
    try:
        return zlib.decompress(body)
    except zlib.error as error:
        raise ConversionError(f"unknown compression of an R object ({error})") from error


def _unpacked(raw: bytes) -> bytes:
    if raw[:2] == b"\x1f\x8b":
        return gzip.decompress(raw)
    try:
        return zlib.decompress(raw)
    except zlib.error:
        return raw


def novel_text(lines: list[str]) -> str:
    """A novel from its printed lines: paragraphs of one line each, a blank line between them.

    It begins with its first chapter's heading; title pages and licences are left out.
    """
    text = "\n".join(str(line) for line in lines)
    text = text.replace("\r\n", "\n").replace("_", "")
    parts = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n[ \t]*\n", text))
    paragraphs = [part for part in parts if part]
    first = next((i for i, p in enumerate(paragraphs) if _FIRST_CHAPTER.match(p)), 0)
    last = next((i for i, p in enumerate(paragraphs) if _END.match(p)), len(paragraphs))
    return "\n\n".join(paragraphs[first:last]) + "\n"


def markdown_text(raw: str) -> str:
    """Markdown as plain paragraphs; headings keep their ``#`` signs, emphasis and links go."""
    raw = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", raw.replace("\r\n", "\n"))
    raw = re.sub(r"\[([^\]\[]*)\]\((?!\s)[^)]*\.(?:md|html)[^)]*\)", r"\1", raw)
    raw = re.sub(r"\[([^\]\[]*)\]\((?:http|#)[^)]*\)", r"\1", raw)
    raw = re.sub(r"<(https?://[^>]*)>", r"\1", raw)
    raw = re.sub(r"(?m)^[ \t]*>+[ \t]?", "", raw)
    blocks = (_markdown_block(block) for block in re.split(r"\n\s*\n", raw))
    return "\n\n".join(block for block in blocks if block)


def _markdown_block(block: str) -> str:
    block = re.sub(r"\s+", " ", block).strip()
    if re.fullmatch(r"[-*_ ]*", block) or "\u2039" in block or "\u203a" in block:
        return ""  # a rule, or the links to the pages before and after
    block = re.sub(r"^[*+-] +", "", block)
    block = re.sub(r"\*\*|__", "", block)
    block = re.sub(r"(?<![A-Za-z0-9])[_*]+|[_*]+(?![A-Za-z0-9])", "", block)
    block = re.sub(r"\\([\[\]()_*#.+>-])", r"\1", block)
    block = re.sub(r" +", " ", block)
    return re.sub(r"\[ ", "[", re.sub(r" (?=,|\]|\.(?: [A-Z]|$))", "", block)).strip()


def faq_text(folder: Path) -> str:
    """The FAQ's sections A to J, in order: each begins with its heading ``# A.1 ...``.

    Raises:
        ConversionError: the folder holds no section.
    """
    parts = []
    for path in sorted(folder.glob("sec*.md*"), key=_section_order):
        if not re.match(r"sec[A-J]\d+\.md", path.name):
            continue  # introductions and conclusions without a number
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", "replace")
        text = markdown_text(text)
        letter, number = _section_order(path)
        if not text.startswith("# "):
            text = f"# {letter}.{number}\n\n{text}"
        parts.append(text)
    if not parts:
        raise ConversionError(f"no section of the FAQ (secA1.md and so on) in {folder}")
    return "\n\n".join(parts) + "\n"


def _section_order(path: Path) -> tuple[str, int]:
    found = re.match(r"sec([A-Z])(\d+)", path.name)
    return (found[1], int(found[2])) if found else ("", 0)


def write_atomically(path: Path, text: str) -> None:
    """The file appears under its name only when it is complete."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def convert_all(package_root: Path, folder: Path) -> list[Path]:
    """Write every text of :data:`FILES` that is not there yet; returns the paths written.

    Raises:
        ConversionError: a package is missing or holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    sources = {"janeaustenr": AUSTEN, "tokenizers": MOBY}
    for package, names in sources.items():
        for name, file in names.items():
            if (folder / file).is_file():
                continue
            value = r_object(package_root / _R_LIBRARY / package / "data/Rdata", name)
            write_atomically(folder / file, novel_text(_lines(value)))
            written.append(folder / file)
    if not (folder / FAQ_FILE).is_file():
        write_atomically(folder / FAQ_FILE, faq_text(package_root / _FAQ_FOLDER))
        written.append(folder / FAQ_FILE)
    return written


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict) and len(value) == 1:
        value = next(iter(value.values()))
    return [str(line) for line in value]


def main(arguments: list[str]) -> int:
    """Command line; 0 if every text is there at the end."""
    if len(arguments) != 2:
        print("usage: convert_texts.py PACKAGE_ROOT TEXT_FOLDER", file=sys.stderr)
        return 2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rdata guesses the file type and says so
            written = convert_all(Path(arguments[0]), Path(arguments[1]))
    except (ConversionError, OSError) as error:
        print(f"convert_texts: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(
            f"convert_texts: reading R data needs the package {error.name}; install it with "
            "`pip install rdata`",
            file=sys.stderr,
        )
        return 1
    for path in written:
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
