"""QMSum: meetings, what is asked about them, and the turns that hold the answer (Zhong 2021).

Read are the files ``train.jsonl``, ``val.jsonl`` and ``test.jsonl`` (``meeting_transcripts``,
``general_query_list``, ``specific_query_list``). A row is one query; those of a meeting come
together, the specific ones first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qm_vllm_eval.datasets.published import PUBLISHED, PublishedRows, clean
from qm_vllm_eval.datasets.published_files import split_files
from qm_vllm_eval.datasets.rows import DataRow, Record, records

QMSUM = PUBLISHED["qmsum"]
COLUMNS = ("meeting_transcripts", "general_query_list", "specific_query_list")


@dataclass(frozen=True)
class QmsumRow(DataRow):
    """One query.

    Attributes:
        meeting: number of the meeting in its file, from 0.
        turns: the whole meeting, "speaker: what was said" a turn.
        query: what is asked. answer: the reference summary.
        evidence: [first, last] turns that hold the answer, numbers from 0, both included; empty
            for a general query, which asks about the whole meeting.
    """

    meeting: int = 0
    turns: tuple[str, ...] = field(default=(), repr=False)
    query: str = ""
    answer: str = field(default="", repr=False)
    evidence: tuple[tuple[int, int], ...] = ()


def open_qmsum(source: str | Path, split: str = "test") -> PublishedRows[QmsumRow]:
    """A split in the order of the file.

    Args:
        source: a .jsonl file, or a folder with one a split ("val" is "validation").

    Raises:
        DataSetError: no such split, nothing is there; while iterating: a file cannot be read.
    """
    name, files = split_files(QMSUM, source, split)

    def read(_: Any) -> Iterator[QmsumRow]:
        meeting = 0
        for file in files:
            for record in records(file, COLUMNS):
                yield from _rows(meeting, record)
                meeting += 1

    return PublishedRows(name, read)


def _rows(meeting: int, record: Record) -> Iterator[QmsumRow]:
    lists = [held for column in COLUMNS if isinstance(held := record.values.get(column), list)]
    if record.reason or len(lists) < len(COLUMNS) or not lists[0]:
        reason = record.reason or f"{record.place} is no meeting with turns and queries"
        yield QmsumRow(f"meeting-{meeting}", meeting, reason=reason)
        return
    said, general, specific = lists
    turns = tuple(
        f"{clean(turn.get('speaker'))}: {clean(turn.get('content'))}" if isinstance(turn, dict)
        else clean(turn) for turn in said
    )
    for number, entry in enumerate([*specific, *general]):
        row_id = f"meeting-{meeting}-{number}"
        held = entry if isinstance(entry, dict) else {}
        query, answer = clean(held.get("query")), clean(held.get("answer"))
        evidence = _spans(held.get("relevant_text_span"), len(turns))
        reason = "" if query and answer else f"{record.place} query {number} has no answer"
        if evidence is None:
            reason = reason or f"{record.place} query {number} names turns that are not there"
        yield QmsumRow(row_id, meeting, turns, query, answer, evidence or (), reason=reason)


def _spans(value: Any, turns: int) -> tuple[tuple[int, int], ...] | None:
    """Pairs of turns; None if one is not in the meeting."""
    spans = []
    for pair in value if isinstance(value, list) else []:
        try:
            first, last = (int(number) for number in pair)
        except (TypeError, ValueError):
            return None
        if not 0 <= first <= last < turns:
            return None
        spans.append((first, last))
    return tuple(spans)
