"""Tiny stand-ins for the sets of long documents with questions, in the published formats.

For :func:`qm_vllm_eval.datasets.fixtures.write_fixture`; the texts are written for this project.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TOWERS = (
    ("The Mill", "The mill of Orla has three wheels. Only the smallest still turns."),
    ("The Bridge", "The bridge at Tarn was built by two sisters. It took them nine summers."),
)


def _lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _longbench(folder: Path) -> None:
    passages = "\n".join(
        f"Passage {number}:\n{title}\n{text}" for number, (title, text) in enumerate(_TOWERS, 1)
    )
    _lines(folder / "hotpotqa.jsonl", [{
        "id": "hotpotqa-0", "task": "hotpotqa", "gold": ["nine summers", "nine"],
        "prompt": f"Answer from the given passages.\n{passages}\n\nAnswer the question now.\n\n"
                  "Question: How long did the bridge take?\nAnswer:",
    }])  # fmt: skip
    _lines(folder / "trec.jsonl", [{
        "input": "Question: Who built the bridge ?\nType:", "answers": ["Individual"],
        "context": "Question: When was the mill built ?\nType: Date\n", "dataset": "trec",
        "all_classes": ["Date", "Individual"], "length": 9, "language": "en", "_id": "0",
    }])  # fmt: skip


def _leval(folder: Path) -> None:
    _lines(folder / "Open-ended-tasks" / "scientific_qa.jsonl", [{
        "input": _TOWERS[0][1], "instructions": ["How many wheels are there?", "Which one turns?"],
        "outputs": ["three", "the smallest"], "source": "invented", "evaluation": "f1",
    }])  # fmt: skip
    _lines(folder / "Closed-ended-tasks" / "quality.jsonl", [{
        "input": _TOWERS[1][1], "outputs": ["(B) two sisters"], "evaluation": "exam",
        "instructions": ["Who built it?\n\n (A) a king\n (B) two sisters\n (C) no one\n (D) all"],
    }])  # fmt: skip


def _squality(folder: Path) -> None:
    for split in ("train", "dev", "test"):
        _lines(folder / f"{split}.jsonl", [{
            "metadata": {"passage_id": f"{split}-1", "uid": "a", "license": "invented"},
            "document": _TOWERS[0][1],
            "questions": [
                {"question_text": question, "question_number": number, "responses": [
                    {"worker_id": worker, "uid": f"{number}{worker}", "response_text": text}
                    for worker, text in (("1", "A mill is told of."), ("2", "One wheel turns."))
                ]}
                for number, question in ((1, "What is the plot?"), (2, "What of the wheels?"))
            ],
        }])  # fmt: skip


def _qmsum(folder: Path) -> None:
    said = (("Ada", "Shall the mill be sold?"), ("Bo", "No, the wheel still turns."),
            ("Ada", "Then we keep it."))  # fmt: skip
    for split in ("train", "val", "test"):
        _lines(folder / f"{split}.jsonl", [{
            "topic_list": [{"topic": "The mill", "relevant_text_span": [["0", "2"]]}],
            "general_query_list": [
                {"query": "Summarize the whole meeting.", "answer": "The mill is kept."}
            ],
            "specific_query_list": [{
                "query": "Why is the mill kept?", "answer": "Its wheel still turns.",
                "relevant_text_span": [["1", "1"]],
            }],
            "meeting_transcripts": [{"speaker": who, "content": text} for who, text in said],
        }])  # fmt: skip


def _babi(folder: Path) -> None:
    for split in ("train", "test"):
        lines = (
            "1 Ada went to the mill.", "2 Bo took the key.", "3 Where is Ada? \tmill\t1",
            "4 Ada went to the bridge.", "5 Where is Ada? \tbridge\t4",
            "1 Bo went to the bridge.", "2 Where is Bo? \tbridge\t1",
        )  # fmt: skip
        text = "".join(f"{line}\n" for line in lines)
        (folder / f"qa1_single-supporting-fact_{split}.txt").write_text(text, encoding="utf-8")


WRITERS: dict[str, Callable[[Path], str | None]] = {
    "longbench": _longbench,
    "leval": _leval,
    "squality": _squality,
    "qmsum": _qmsum,
    "babi": _babi,
}
