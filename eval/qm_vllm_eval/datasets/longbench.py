"""LongBench's English tasks: a long context, an input, accepted answers (Bai et al. 2024).

Read are LongBench's own records (``input``, ``context``, ``answers``, ``all_classes``), one
TASK.jsonl a task or the name on the hub, and those of MiniLongBench (Huang et al. 2025), which
hold the whole prompt (``prompt``, ``gold``): context and input are taken out of it again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qm_vllm_eval.datasets.published import PUBLISHED, PublishedRows, clean
from qm_vllm_eval.datasets.published_files import open_tasks
from qm_vllm_eval.datasets.rows import DataRow, DataSetError, Record, records

LONGBENCH = PUBLISHED["longbench"]
COLUMNS = ("input", "context", "answers")
OPTIONAL = (*COLUMNS, "all_classes", "prompt", "gold")
"""What a record may hold: the columns of LongBench, or prompt and gold of MiniLongBench."""

_PASSAGES = (
    r"given passages\.\n(?P<context>.*)\n\nAnswer the question.*?\nQuestion: (?P<input>.*)\nAnswer:"
)
_PARAGRAPHS = r"^.*?\n\n(?P<context>Paragraph 1: .*)\n\n"
_CODE = r"^[^\n]*\n(?P<context>.*)Next line of code:(?P<input>)"
PROMPTS = {
    "2wikimqa": _PASSAGES,
    "hotpotqa": _PASSAGES,
    "musique": _PASSAGES,
    "qasper": _PASSAGES,
    "multifieldqa_en":
        r"^[^\n]*\n\n(?P<context>.*)\n\nNow, answer .*?\nQuestion: (?P<input>.*)\nAnswer:",
    "gov_report": r"\n\nReport:\n(?P<context>.*)\n\nNow, write (?P<input>)",
    "qmsum": r"\n\nTranscript:\n(?P<context>.*)\n\nNow, answer .*?\nQuery: (?P<input>.*)\nAnswer:",
    "trec": r"examples of questions\.\n+(?P<context>.*\n)(?P<input>Question: [^\n]*\nType:)",
    "triviaqa": r"examples\.\n+(?P<context>.*\n)(?P<input>Passage:\n.*\nAnswer:)",
    "passage_count": _PARAGRAPHS + r"Please enter the final count(?P<input>)",
    "passage_retrieval_en":
        _PARAGRAPHS + r"[^\n]*abstract\.\n\n(?P<input>.*)\n\nPlease enter the number",
    "lcc": _CODE,
    "repobench-p": _CODE,
}
"""By task, where context and input stand in the published prompt."""  # fmt: skip


@dataclass(frozen=True)
class LongBenchRow(DataRow):
    """One sample.

    Attributes:
        task: LongBench's name of it. context: the long text.
        input: question, query, or the last of the shown examples without its answer; may be "".
        answers: accepted answers, at least one.
        classes: every class of a classification, else empty.
    """

    task: str = ""
    context: str = field(default="", repr=False)
    input: str = field(default="", repr=False)
    answers: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


def open_longbench(
    source: str | Path, split: str = "test", task: str | None = None
) -> PublishedRows[LongBenchRow]:
    """One task, or all that a folder holds one after the other.

    Args:
        source: a TASK.jsonl, a folder of them, or the name on the hub (then ``task`` is needed,
            and the package ``datasets``).
        task: of :data:`PROMPTS`.

    Raises:
        DataSetError: no such task or split, nothing is there, or the hub cannot be asked; while
            iterating: a file cannot be read.
    """
    if task is not None and task not in PROMPTS:
        raise DataSetError(f"LongBench has no task {task!r} here; there are {', '.join(PROMPTS)}")
    return open_tasks(
        LONGBENCH, source, split, task, tuple(PROMPTS), COLUMNS,
        lambda file: records(file, (), OPTIONAL), _rows,
    )


def _rows(task: str, held: Iterator[Record]) -> Iterator[LongBenchRow]:
    for number, record in enumerate(held):
        row_id = f"{task}-{number}"
        if record.reason:
            yield LongBenchRow(row_id, task, reason=record.reason)
            continue
        values = record.values
        parts = _of_prompt(task, values) if "prompt" in values else _of_columns(values)
        if parts is None:
            reason = f"{record.place} is no sample of {task} with a context and an answer"
            yield LongBenchRow(row_id, task, reason=reason)
            continue
        context, asked, answers, classes = parts
        yield LongBenchRow(row_id, task, context, asked, answers, classes)


Parts = tuple[str, str, tuple[str, ...], tuple[str, ...]]


def _of_prompt(task: str, values: dict[str, Any]) -> Parts | None:
    prompt, gold = values["prompt"], values.get("gold")
    if task not in PROMPTS or not isinstance(prompt, str):
        return None
    found = re.search(PROMPTS[task], prompt, re.DOTALL)
    if isinstance(gold, dict):
        answers, classes = gold.get("answers"), gold.get("all_classes")
    else:
        answers, classes = gold, None
    return _parts(found["context"], found["input"], answers, classes) if found else None


def _of_columns(values: dict[str, Any]) -> Parts | None:
    return _parts(
        values.get("context"), values.get("input"), values.get("answers"),
        values.get("all_classes"),
    )


def _parts(context: Any, asked: Any, answers: Any, classes: Any) -> Parts | None:
    if not isinstance(context, str) or not isinstance(answers, list):
        return None
    told = texts(answers)
    if not context.strip() or not told:
        return None
    return context, clean(asked), told, texts(classes)


def texts(values: Any) -> tuple[str, ...]:
    """The texts of a list that are not empty; a line of code keeps the space before it."""
    held = values if isinstance(values, list) else []
    return tuple(value.rstrip() for value in held if isinstance(value, str) and value.strip())
