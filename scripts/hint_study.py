#!/usr/bin/env python
"""Measures what a hint is worth: a document whose questions are hidden, hinted at, or in sight.

    .venv/bin/python scripts/hint_study.py --data FOLDER --out points.csv

FOLDER holds L-Eval's tasks and SQuALITY as published: ``leval/Open-ended-tasks/NAME.jsonl``,
``squality/dev.jsonl``; both have several questions on one document. Every question is measured in
four settings: ``blind`` (the choice sees the document alone), ``task`` (the hint is the document's
other questions, the last 64 tokens of them), ``question`` (the hint is the question itself) and
``visible`` (the question ends the prompt). Prompts of more than ``--most`` tokens are left out.
Adds one line a question, setting, method and ratio to the CSV (likelihoods of the answer alone, so
nothing is decoded), and prints retention (docs/quality.md). What the file has is not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from qm_vllm.assets import embedded
from qm_vllm.option_checks import MOST_HINT
from qm_vllm_eval.engines.base import Cell
from qm_vllm_eval.engines.reference import ReferenceEngine
from qm_vllm_eval.methods import METHODS
from qm_vllm_eval.prompt import prompt_length
from qm_vllm_eval.published.agents import hint_table
from qm_vllm_eval.sample import Sample

SETTINGS = ("blind", "task", "question", "visible")
COLUMNS = ("task", "document", "question", "setting", "method", "ratio", "nll")
SQUALITY = "squality"
WORDS = 40
"""Of an answer that are measured: summaries are long."""


@dataclass(frozen=True)
class Document:
    """A text with its questions and the first answer to each."""

    text: str
    questions: list[str]
    answers: list[str]


def documents(folder: Path, task: str) -> list[Document]:
    """All documents of a task, in the file's order."""
    if task == SQUALITY:
        return [
            Document(
                row["document"], [one["question_text"] for one in row["questions"]],
                [one["responses"][0]["response_text"] for one in row["questions"]],
            )
            for row in _lines(folder / "squality" / "dev.jsonl")
        ]
    return [
        Document(row["input"], row["instructions"], row["outputs"])
        for row in _lines(folder / "leval" / "Open-ended-tasks" / f"{task}.jsonl")
    ]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def samples(task: str, number: int, document: Document, asked: int) -> Iterator[tuple[str, Sample]]:
    """One question in all settings."""
    question, answer = document.questions[asked], document.answers[asked]
    others = [one for i, one in enumerate(document.questions) if i != asked]
    plain = Sample(
        sample_id=f"{task}-{number}-{asked}", task=task, family="qa", context=document.text,
        question=f"\n\nQuestion: {question} Answer briefly.", answers=(answer,),
        target=" " + " ".join(answer.split()[:WORDS]), query_visible=False, metric="none",
        max_new_tokens=0, haystack="data", length=0, split="report", index=number,
        answer_prefix="Answer:",
    )
    for setting in SETTINGS:
        hint = {"task": " ".join(others), "question": f"Question: {question}"}.get(setting, "")
        yield setting, replace(plain, hint=hint[-MOST_HINT:], query_visible=setting == "visible")


def measured(
    engine: ReferenceEngine, sample: Sample, methods: list[str], ratios: list[float]
) -> Iterator[tuple[str, float, float]]:
    """Method, ratio and mean negative log-likelihood of the answer."""
    cells: list[Cell] = [(METHODS[name], ratio) for name in methods for ratio in ratios]
    if sample.query_visible:
        cells += [(METHODS["none"], 0.0), (METHODS["plain"], 1.0)]
    for rows in engine.evaluate(sample, cells):
        yield from ((row.method, row.ratio, row.nll) for row in rows)


@torch.inference_mode()
def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the two data sets")
    parser.add_argument("--out", type=Path, required=True, help="CSV file, added to")
    parser.add_argument("--tasks", default="multidoc_qa,scientific_qa")
    parser.add_argument("--methods", default="native")
    parser.add_argument("--ratios", default="0.25,0.125")
    parser.add_argument("--documents", type=int, default=4, help="of each task, the first that fit")
    parser.add_argument("--questions", type=int, default=3, help="of each document")
    parser.add_argument("--most", type=int, default=4000, help="tokens of a prompt")
    parser.add_argument("--model", help="folder of a model; default: the embedded one")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    methods, ratios = given.methods.split(","), [float(one) for one in given.ratios.split(",")]
    engine = ReferenceEngine(
        given.model or embedded.ensure_model(), dtype=given.dtype, threads=given.threads
    )
    known = pd.read_csv(given.out) if given.out.exists() else pd.DataFrame(columns=COLUMNS)
    done = set(zip(known.task, known.document, known.question, known.setting, strict=True))
    with given.out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if not len(known):
            writer.writerow(COLUMNS)
        for task in given.tasks.split(","):
            left = given.documents
            for number, document in enumerate(documents(given.data, task)):
                first = next(samples(task, number, document, 0))[1]
                if not left or prompt_length(first, engine.tokenizer) > given.most:
                    continue
                left -= 1
                for asked in range(min(given.questions, len(document.questions))):
                    for setting, sample in samples(task, number, document, asked):
                        if (task, number, asked, setting) in done:
                            continue
                        for found in measured(engine, sample, methods, ratios):
                            writer.writerow([task, number, asked, setting, *found])
                        file.flush()
    print(hint_table(given.out))


if __name__ == "__main__":
    main()
