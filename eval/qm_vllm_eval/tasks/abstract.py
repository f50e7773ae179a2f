"""Summaries: a paper's beginning is the context, its true abstract is what should follow.

The papers are those of ScisummNet (Yasunaga et al. 2019).
"""

from __future__ import annotations

import re
from typing import Any

from qm_vllm_eval.haystacks import Piece
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import data
from qm_vllm_eval.tasks.base import DATA, Request, Task, fit
from qm_vllm_eval.tasks.documents import target_of

FAMILY = "summary"

def _abstract(request: Request) -> Sample:
    papers = [
        paper for paper in data.half(data.json_of(data.PAPERS), request.split)
        if len(_body(paper)) > data.CHARACTERS * request.length
    ]
    paper = data.turn_of(papers, request.turn + request.draw, "paper")
    target = target_of(request, paper["abstract"])

    def make(pieces: list[Piece]) -> Sample:
        text = "".join(piece.joiner + piece.text for piece in pieces)
        return request.sample(
            f"{paper['title']}{text}",
            "\n\nWrite the abstract of this paper.",
            target,
            (),
            answer_prefix="Abstract:",
            max_new_tokens=0,
        )

    return fit(request, _pieces(paper), make)


def _body(paper: dict[str, Any]) -> str:
    return "\n\n".join(f"{part['title']}\n\n{part['text']}" for part in paper["sections"])


def _pieces(paper: dict[str, Any]) -> list[Piece]:
    """Headings and sentences."""
    pieces = []
    for part in paper["sections"]:
        pieces.append(Piece("\n\n", part["title"]))
        sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", part["text"].strip())
        pieces += [Piece(" " if i else "\n\n", one) for i, one in enumerate(sentences) if one]
    return pieces


TASKS = (
    Task(
        "abstract",
        FAMILY,
        "none",
        "The likelihood of a paper's abstract after the beginning of its body.",
        _abstract,
        haystacks=(DATA,),
        files=(data.PAPERS,),
    ),
)
