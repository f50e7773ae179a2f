"""Learning from the context: as many labelled texts as fit, then one text to label.

Texts and labels are of CLINC150 (Larson et al. 2019).
"""

from __future__ import annotations

from qm_vllm_eval.haystacks import Piece
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import data
from qm_vllm_eval.tasks.base import DATA, Request, Task, fit, join

FAMILY = "many_shot"
LABELS = 20
"""Labels of one prompt: at 1,000 tokens each has two or three shots."""


def _many_shot(request: Request) -> Sample:
    rows = data.json_of(data.INTENTS)
    every = data.half(sorted({label for _, label in rows["train"]}), request.split)
    rng = request.rng("labels")
    labels = rng.sample(every, min(LABELS, len(every)))
    shots = {
        label: rng.sample(texts, len(texts))
        for label in labels if (texts := [text for text, own in rows["train"] if own == label])
    }
    # Rounds over the labels: any beginning has all labels about equally often.
    pieces = [
        Piece("\n\n", f"text: {shots[label][turn]}\nlabel: {_said(label)}")
        for turn in range(max(map(len, shots.values())))
        for label in rng.sample(labels, len(labels)) if turn < len(shots[label])
    ]
    whole = {piece.text for piece in pieces}
    text, asked = rng.choice([row for row in rows["test"] if row[1] in shots])

    def make(chosen: list[Piece]) -> Sample:
        return request.sample(
            join([piece for piece in chosen if piece.text in whole]),
            f"\n\ntext: {text}\nlabel:",
            f" {_said(asked)}",
            [_said(asked)],
            chat=False,
        )

    return fit(request, pieces, make)


def _said(label: str) -> str:
    return label.replace("_", " ")


TASKS = (
    Task(
        "many_shot",
        FAMILY,
        "any",
        "A text to label after many labelled texts.",
        _many_shot,
        haystacks=(DATA,),
        minimum=768,
        files=(data.INTENTS,),
    ),
)
