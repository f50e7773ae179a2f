"""bAbI: stories of a few words a sentence, questions with supporting facts (Weston et al. 2015).

Read are the files ``qaN_..._SPLIT.txt`` of version 1.2: lines "number sentence", a new story at
1, and questions "number question TAB answer TAB numbers of the sentences that tell".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qm_vllm_eval.datasets.published import (
    PUBLISHED,
    PublishedRows,
    absent,
    read_lines,
    source_path,
)
from qm_vllm_eval.datasets.rows import DataRow

BABI = PUBLISHED["babi"]


@dataclass(frozen=True)
class BabiRow(DataRow):
    """One question.

    Attributes:
        task: number of the bAbI task. story: number of the story in its file, from 0.
        facts: what the story has told before the question, a sentence each.
        question: what is asked. answer: one word, or several by comma.
        evidence: which of the facts tell the answer, from 0, in the published order.
    """

    task: int = 0
    story: int = 0
    facts: tuple[str, ...] = ()
    question: str = ""
    answer: str = ""
    evidence: tuple[int, ...] = ()


def open_babi(
    source: str | Path, split: str = "test", task: int | None = None
) -> PublishedRows[BabiRow]:
    """One task, or all that a folder holds in the order of their numbers.

    Args:
        source: a qaN file, or a folder with one a task and split. task: number N.

    Raises:
        DataSetError: no such split, or nothing is there; while iterating: a file cannot be read.
    """
    path = source_path(BABI, source, split)
    pattern = f"qa{task if task is not None else '*'}_*_{split}.txt"
    files = [path] if path.is_file() else sorted(path.rglob(pattern), key=_number)
    if not files:
        raise absent(BABI, f"{path} has no file {pattern}")

    def read(_: Any) -> Iterator[BabiRow]:
        for file in files:
            yield from _rows(file)

    return PublishedRows(path.name, read)


def _number(file: Path) -> int:
    found = re.match(r"qa(\d+)_", file.name)
    return int(found[1]) if found else 0


def _rows(file: Path) -> Iterator[BabiRow]:
    task, story, asked = _number(file), -1, 0
    facts: dict[str, str] = {}
    for line in read_lines(file):
        number, _, text = line.partition(" ")
        if number == "1":
            story, facts = story + 1, {}
        question, *rest = text.split("\t")
        if not rest:
            facts[number] = question.strip()
            continue
        row_id, asked = f"qa{task}-{asked}", asked + 1
        places = list(facts)
        told = rest[1].split() if len(rest) > 1 else []
        if not rest[0].strip() or any(one not in facts for one in told):
            reason = f"{file.name} question {asked} has no answer, or names no fact before it"
            yield BabiRow(row_id, task, max(story, 0), reason=reason)
            continue
        yield BabiRow(
            row_id, task, max(story, 0), tuple(facts.values()), question.strip(),
            rest[0].strip(), tuple(places.index(one) for one in told),
        )
