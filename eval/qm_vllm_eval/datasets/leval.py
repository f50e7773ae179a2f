"""L-Eval: several questions about each long document (An et al. 2023).

Read are its files TASK.jsonl (``input``, ``instructions``, ``outputs``) in their folders, and the
same columns on the hub. A row is one question; the rows of a document come together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qm_vllm_eval.datasets.published import PUBLISHED, PublishedRows, clean
from qm_vllm_eval.datasets.published_files import open_tasks
from qm_vllm_eval.datasets.rows import DataRow, DataSetError, Record, records

LEVAL = PUBLISHED["leval"]
COLUMNS = ("input", "instructions", "outputs")
TASKS = (
    "quality", "sci_fi", "topic_retrieval_longchat", "gsm100", "coursera", "tpo", "codeU",
    "scientific_qa", "multidoc_qa", "natural_question", "legal_contract_qa", "narrative_qa",
    "financial_qa", "gov_report_summ", "patent_summ", "meeting_summ", "news_summ",
    "review_summ", "tv_show_summ", "paper_assistant",
)  # fmt: skip
"""As their files are called: closed-ended tasks, then open-ended ones."""


@dataclass(frozen=True)
class LevalRow(DataRow):
    """One question.

    Attributes:
        task: of :data:`TASKS`. number: of the document in its file, from 0.
        document: the long text. question: the instruction. answer: the reference answer.
    """

    task: str = ""
    number: int = 0
    document: str = field(default="", repr=False)
    question: str = ""
    answer: str = ""


def open_leval(
    source: str | Path, split: str = "test", task: str | None = None
) -> PublishedRows[LevalRow]:
    """One task, or all that a folder holds one after the other.

    Args:
        source: a TASK.jsonl, a folder that holds such files anywhere below it, or the name on
            the hub (then ``task`` is needed, and the package ``datasets``).
        task: of :data:`TASKS`.

    Raises:
        DataSetError: no such task or split, nothing is there, or the hub cannot be asked; while
            iterating: a file cannot be read.
    """
    if task is not None and task not in TASKS:
        raise DataSetError(f"L-Eval has no task {task!r}; there are {', '.join(TASKS)}")
    return open_tasks(
        LEVAL, source, split, task, TASKS, COLUMNS, lambda file: records(file, COLUMNS), _rows
    )


def _rows(task: str, held: Iterator[Record]) -> Iterator[LevalRow]:
    for number, record in enumerate(held):
        row_id = f"{task}-{number}"
        document, asked, told = (record.values.get(column) for column in COLUMNS)
        reason = record.reason
        if not reason and not (
            isinstance(document, str) and document.strip()
            and isinstance(asked, list) and isinstance(told, list) and len(asked) == len(told)
        ):
            reason = f"{record.place} has no document with as many answers as questions"
        if reason:
            yield LevalRow(row_id, task, number, reason=reason)
            continue
        for place, (question, answer) in enumerate(zip(asked or (), told or (), strict=True)):
            row = LevalRow(
                f"{row_id}-{place}", task, number, str(document), clean(question), clean(answer),
                reason="" if clean(question) and clean(answer)
                else f"{record.place} has an empty question or answer",
            )
            yield row
