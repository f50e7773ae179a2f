"""SQuALITY: short stories, five questions each, four human summaries each (Wang et al. 2022).

Read are the files ``train.jsonl``, ``dev.jsonl`` and ``test.jsonl`` (``metadata``, ``document``,
``questions``). A row is one question; the rows of a story come together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qm_vllm_eval.datasets.longbench import texts
from qm_vllm_eval.datasets.published import PUBLISHED, PublishedRows, clean
from qm_vllm_eval.datasets.published_files import split_files
from qm_vllm_eval.datasets.rows import DataRow, Record, records

SQUALITY = PUBLISHED["squality"]
COLUMNS = ("metadata", "document", "questions")


@dataclass(frozen=True)
class SqualityRow(DataRow):
    """One question.

    Attributes:
        story_id: ``passage_id`` as published. story: the whole text.
        question: the first one of a story asks for its plot.
        references: one answer for each writer, at least one.
    """

    story_id: str = ""
    story: str = field(default="", repr=False)
    question: str = ""
    references: tuple[str, ...] = field(default=(), repr=False)


def open_squality(source: str | Path, split: str = "test") -> PublishedRows[SqualityRow]:
    """A split in the order of the file.

    Args:
        source: a .jsonl file, or a folder with one a split ("dev" is "validation").

    Raises:
        DataSetError: no such split, nothing is there; while iterating: a file cannot be read.
    """
    name, files = split_files(SQUALITY, source, split)

    def read(_: Any) -> Iterator[SqualityRow]:
        for file in files:
            for record in records(file, COLUMNS):
                yield from _rows(record)

    return PublishedRows(name, read)


def _rows(record: Record) -> Iterator[SqualityRow]:
    about, story, asked = (record.values.get(column) for column in COLUMNS)
    story_id = clean(about.get("passage_id")) if isinstance(about, dict) else ""
    reason = record.reason
    if not reason and not (
        story_id and isinstance(story, str) and story.strip() and isinstance(asked, list)
    ):
        reason = f"{record.place} is no story with 'passage_id', 'document' and 'questions'"
    if reason:
        yield SqualityRow(record.place, story_id, reason=reason)
        return
    for number, entry in enumerate(asked or (), 1):
        held = entry if isinstance(entry, dict) else {}
        told = held.get("responses")
        references = texts([
            one.get("response_text") for one in told if isinstance(one, dict)
        ] if isinstance(told, list) else [])
        question = clean(held.get("question_text"))
        yield SqualityRow(
            f"{story_id}-{number}", story_id, str(story), question, references,
            reason="" if question and references
            else f"{record.place} questions[{number - 1}] has no question or no answer",
        )
