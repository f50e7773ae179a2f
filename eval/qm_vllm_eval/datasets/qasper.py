"""QASPER: questions about whole scientific papers, with all reference answers.

Read are ``qasper-train-v0.3.json``, ``qasper-dev-v0.3.json`` and ``qasper-test-v0.3.json`` (an
object of papers by id), and records with the columns of the hub (``id``, ``title``,
``abstract``, ``full_text``, ``qas``), where a list of objects is an object of lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qm_vllm_eval.datasets.published import (
    PUBLISHED,
    PublishedRows,
    absent,
    check_split,
    clean,
    hub_records,
    is_hub_name,
    load_json,
    source_path,
)
from qm_vllm_eval.datasets.rows import DataRow, DataSetError, files_of, records

QASPER = PUBLISHED["qasper"]
COLUMNS = ("id", "title", "abstract", "full_text", "qas")
HUB_CONFIG = "qasper"
KINDS = ("extractive", "abstractive", "boolean", "none")
"""Kinds of answers, as the official evaluator calls them; "none" is "Unanswerable"."""
_FILE_SPLITS = {"train": "train", "validation": "dev", "test": "test"}

Paper = tuple[str, str, Any]  # id, place in the file, what it holds


@dataclass(frozen=True)
class QasperRow(DataRow):
    """One question.

    Attributes:
        paper_id, question_id: as published; the former is the paper's on arxiv.org.
        question: what is asked. title: the paper's.
        text: title, abstract and all sections with their names, between empty lines.
        references: one answer for each annotator, at least one; equal ones stay.
        kinds: of :data:`KINDS`, one for each reference.
        evidence: paragraphs that each annotator chose; "FLOAT SELECTED: ..." is a figure or
            table, whose content is not in ``text``.
    """

    paper_id: str = ""
    question_id: str = ""
    question: str = ""
    title: str = ""
    text: str = field(default="", repr=False)
    references: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    evidence: tuple[tuple[str, ...], ...] = field(default=(), repr=False)


def open_qasper(source: str | Path, split: str = "test") -> PublishedRows[QasperRow]:
    """A split of QASPER in the order of the file; a JSON file is in memory whole.

    Args:
        source: a file, or a folder with ``qasper-SPLIT-v0.3.json`` or parquet or jsonl files; or
            the name on the hub, which needs the package ``datasets`` and the network.
        split: "train", "validation" ("dev") or "test"; a single file is read whole.

    Raises:
        DataSetError: nothing is there, the hub cannot be asked, or a file is of another form;
            that of records is read while iterating.
    """
    if is_hub_name(source):
        check_split(QASPER, split)
        stream = hub_records(QASPER, str(source), HUB_CONFIG, split, COLUMNS)
        return _rows(str(source), lambda: (_paper(record) for record in stream()))
    path = source_path(QASPER, source, split)
    file = path
    if path.is_dir():
        texts = sorted(path.rglob(f"qasper-{_FILE_SPLITS[split]}-v*.json"))
        if len(texts) > 1:
            names = ", ".join(str(text.relative_to(path)) for text in texts[:4])
            raise DataSetError(f"{path} has more than one version: {names}; give one file")
        file = texts[0] if texts else path
    if file.suffix == ".json":
        held = load_json(file, dict, "an object of papers by id")
        return _rows(file.name, lambda: ((key, f"{file.name} {key}", held[key]) for key in held))
    try:
        files = files_of(file, split)
    except DataSetError as error:
        raise absent(QASPER, f"{error}, and no qasper-{_FILE_SPLITS[split]}-v0.3.json") from error

    def read() -> Iterator[Paper]:
        for part in files:
            for record in records(part, COLUMNS):
                yield _paper(record)

    return _rows(path.name, read)


def _paper(record: Any) -> Paper:
    if record.reason:
        return "", record.place, record.reason
    values = dict(record.values)
    return clean(values.pop("id")), record.place, values


def reference(answer: Any) -> tuple[str, str]:
    """One annotator's answer as text, and its kind, by the rules of the official evaluator.

    The first that holds: unanswerable; extractive spans, joined by ", "; the free form; yes or no.

    Args:
        answer: the object with "unanswerable", "extractive_spans", ...

    Returns:
        The text and its kind; ("", "") if the annotator said nothing.
    """
    if answer.get("unanswerable"):
        return "Unanswerable", "none"
    spans = answer.get("extractive_spans")
    if isinstance(spans, list) and spans:
        return clean(", ".join(map(str, spans))), "extractive"
    if clean(answer.get("free_form_answer")):
        return clean(answer["free_form_answer"]), "abstractive"
    if answer.get("yes_no") is not None:
        return ("Yes" if answer["yes_no"] else "No"), "boolean"
    return "", ""


def _rows(name: str, papers: Callable[[], Iterator[Paper]]) -> PublishedRows[QasperRow]:
    def read(skipped: Counter[str]) -> Iterator[QasperRow]:
        for paper_id, place, held in papers():
            if isinstance(held, str):
                yield QasperRow(place, reason=held)
                continue
            text = _text(held) if isinstance(held, dict) else None
            asked = _objects(held.get("qas")) if isinstance(held, dict) else None
            if not paper_id or text is None or asked is None:
                reason = f"{place} is no paper with an id, 'full_text' and 'qas'"
                yield QasperRow(place, paper_id, reason=reason)
                continue
            base = QasperRow("", paper_id, title=clean(held.get("title")), text=text)
            for number, entry in enumerate(asked):
                yield _row(base, entry, f"{place} qas[{number}]", skipped)

    return PublishedRows(name, read)


def _row(base: QasperRow, entry: Any, place: str, skipped: Counter[str]) -> QasperRow:
    question = clean(entry.get("question")) if isinstance(entry, dict) else ""
    question_id = clean(entry.get("question_id")) if isinstance(entry, dict) else ""
    if not question or not question_id:
        return replace(base, row_id=place, reason=f"{place} has no 'question' or 'question_id'")
    answers = _objects(entry.get("answers"))
    references, kinds, evidence = [], [], []
    for held in answers or ():
        answer = held.get("answer") if isinstance(held, dict) else None
        answer = answer if isinstance(answer, dict) else {}
        text, kind = reference(answer)
        if not text:
            skipped["empty answer"] += 1
            continue
        parts = answer.get("evidence")
        references.append(text)
        kinds.append(kind)
        evidence.append(tuple(map(clean, parts)) if isinstance(parts, list) else ())
    return replace(
        base,
        row_id=f"{base.paper_id}/{question_id}",
        question_id=question_id,
        question=question,
        references=tuple(references),
        kinds=tuple(kinds),
        evidence=tuple(evidence),
        reason="" if references else f"{place} has no answer",
    )


def _text(paper: dict[str, Any]) -> str | None:
    sections = _objects(paper.get("full_text"))
    if sections is None:
        return None
    parts = [clean(paper.get("title")), clean(paper.get("abstract"))]
    for section in sections:
        if not isinstance(section, dict) or not isinstance(section.get("paragraphs"), list):
            return None
        parts += [clean(section.get("section_name")), *map(clean, section["paragraphs"])]
    return "\n\n".join(part for part in parts if part)


def _objects(value: Any) -> list[Any] | None:
    """A list of objects, which the hub keeps as an object of lists of equal length."""
    if isinstance(value, dict):
        if not all(isinstance(column, list) for column in value.values()):
            return None
        if len({len(column) for column in value.values()}) > 1:
            return None
        return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    return value if isinstance(value, list) else None
