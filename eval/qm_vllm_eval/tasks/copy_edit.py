"""Copy-editing: an editor marked two sentences of a text as its key points; write them down.

A summary with a known reference: the marked sentences, word for word and in order.
"""

from __future__ import annotations

import re

from qm_vllm_eval.haystacks import Piece
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks.base import Request, Task, Unfit, fit, join

FAMILY = "copy_edit"
POINTS = 2
MARK = "KEY POINT:"
SHORTEST, LONGEST = 10, 18
"""Tokens of a sentence that may be marked."""


def _copy_edit(request: Request) -> Sample:
    filler = request.filler()
    said = [piece.text for piece in filler]
    usable = {
        piece.text
        for piece in filler
        if re.fullmatch(r"[A-Z][^\"“”()\[\]]*[a-z][.!?]", piece.text)
        and SHORTEST <= request.count(piece.text) <= LONGEST
        and said.count(piece.text) == 1
    }

    def make(pieces: list[Piece]) -> Sample:
        rng = request.rng("points")
        last = len(pieces) - 1  # may be cut
        marked = []
        for part in range(POINTS):
            low, high = part * last // POINTS, (part + 1) * last // POINTS
            places = [i for i in range(low, high) if pieces[i].text in usable]
            if not places:
                raise Unfit("a part of the text has no sentence of the right length")
            marked.append(rng.choice(places))
        points = [pieces[i].text for i in marked]
        text = [
            Piece(piece.joiner, f"{MARK} {piece.text}") if i in marked else piece
            for i, piece in enumerate(pieces)
        ]
        return request.sample(
            join(text),
            f'\n\nThe editor put the words "{MARK}" in front of two sentences of this text. '
            "Write down these two sentences in the order of the text.",
            " " + " ".join(points),
            points,
            answer_prefix="The two key points are:",
        )

    return fit(request, filler, make)


TASKS = (
    Task(
        "copy_edit",
        FAMILY,
        "rouge_l",
        "Two marked sentences of a text are to be written down in order.",
        _copy_edit,
        minimum=320,
    ),
)
