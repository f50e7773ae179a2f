"""A micro-set like BookSum: twelve chapters of public-domain novels, two summaries of each.

The summaries were written for this project (micro_booksum.json); the chapters are read at run
time from the novels that ``scripts/fetch_texts.sh`` makes and are not part of the repository.
Chapters of Northanger Abbey, Persuasion and Moby Dick belong to the reporting split, which no
training and no choice of a setting may use; those of Emma and Sense and Sensibility to the
tuning split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from qm_vllm_eval.datasets.booksum import BookSumRow
from qm_vllm_eval.datasets.rows import DataSetError
from qm_vllm_eval.haystacks import NOVELS, text_folder
from qm_vllm_eval.sample import SPLITS

FILE = Path(__file__).with_suffix(".json")
SOURCE = "qm_vllm"

_HEADING = re.compile(
    r"(?:\A|(?<=\n\n))chapter (?:\d+|[ivxlc]+)\b[^\n]{0,120}(?=\n\n)", re.IGNORECASE
)
_VOLUME = re.compile(r"\n\nvolume [ivx]+\s*\Z", re.IGNORECASE)
_TOLERANCE = 0.02  # editions differ by a word here and there; another chapter differs by more


def micro_rows(split: str | None = None) -> Iterator[BookSumRow]:
    """The rows in a fixed order; of one split ("tune", "report") or of both.

    A chapter that is not what its summaries were written for comes out with a reason.

    Raises:
        DataSetError: a novel is not on this machine. ValueError: no such split.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    for entry in entries():
        if split is None or entry["novel"] in NOVELS[split]:
            yield _row(entry)


def entries() -> list[dict[str, Any]]:
    """What the file holds: novel, chapter, number of words of the chapter, summaries."""
    chapters: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))["chapters"]
    return chapters


def chapter_text(novel: str, number: int) -> str:
    """A chapter without its heading.

    Args:
        novel: the file's name without ".txt".
        number: counted from 1 through all volumes.

    Raises:
        DataSetError: the novel is not on this machine, or has fewer chapters.
    """
    chapters = _chapters(text_folder() / f"{novel}.txt")
    if not 1 <= number <= len(chapters):
        raise DataSetError(f"{novel} has {len(chapters)} chapters, so there is no {number}")
    return chapters[number - 1]


@lru_cache(maxsize=8)
def _chapters(file: Path) -> tuple[str, ...]:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise DataSetError(
            f"the novel {file.stem} is not on this machine ({file}: {error.strerror}); run "
            "`bash scripts/fetch_texts.sh`"
        ) from error
    return tuple(_VOLUME.sub("", part).strip() for part in _HEADING.split(text)[1:])


def _row(entry: dict[str, Any]) -> BookSumRow:
    novel, number = entry["novel"], entry["chapter"]
    chapter = chapter_text(novel, number)
    words, reason = len(chapter.split()), ""
    if abs(words - entry["words"]) > _TOLERANCE * entry["words"]:
        reason = (
            f"chapter {number} of {novel} has {words} words, not about {entry['words']}: this is "
            "another edition than the summaries were written for"
        )
    return BookSumRow(
        f"micro-{novel.replace('_', '-')}-{number}",
        chapter=chapter,
        references=tuple(entry["summaries"]),
        title=f"{novel.replace('_', ' ').title()}, chapter {number}",
        sources=(SOURCE,) * len(entry["summaries"]),
        reason=reason,
    )
