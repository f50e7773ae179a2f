"""BABILong: the facts of a bAbI story, scattered in order over other text (Kuratov et al. 2024).

The text is articles of WikiText instead of the books of PG19; the wording of the questions is
bAbI's, what stands around them is written here.
"""

from __future__ import annotations

import re

from qm_vllm_eval.datasets.babi import BabiRow, open_babi
from qm_vllm_eval.haystacks import Piece
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import data
from qm_vllm_eval.tasks.base import DATA, Request, Task, Unfit, fit
from qm_vllm_eval.tasks.documents import in_turns, take
from qm_vllm_eval.tasks.wikitext import articles

NAMES = (
    "single-supporting-fact", "two-supporting-facts", "three-supporting-facts",
    "two-arg-relations", "three-arg-relations", "yes-no-questions", "counting", "lists-sets",
    "simple-negation", "indefinite-knowledge",
)
"""Of bAbI's tasks 1 to 10, as in the names of their files."""
REPLY = 24
"""Tokens of a prediction."""
CHARACTERS = 7
"""Characters of other text for each token of a prompt: more than it can need."""
PLACES = (1, 2, 3, 4)
"""Tasks whose answers are places: the reply begins with an article, or the first word of small
models is one and the answer is not said."""


def _rows(request: Request) -> list[BabiRow]:
    """The questions of one half of the stories, one of each story in turn."""
    stories: dict[int, list[BabiRow]] = {}
    for row in data.rows_of(open_babi, request.task.files[0]):
        if row.usable:
            stories.setdefault(row.story, []).append(row)
    return in_turns(data.half(list(stories.values()), request.split))


def _babilong(request: Request, row: BabiRow) -> Sample:
    if sum(map(request.count, row.facts)) > request.length / 2:
        raise Unfit("the story fills more than half of the prompt")
    depths = request.depths(len(row.facts))

    def make(chosen: list[Piece]) -> Sample:
        text, evidence = "", []
        places = [round(depth * len(chosen)) for depth in depths]
        for at in range(len(chosen) + 1):
            for number, place in enumerate(places):
                if place == at:
                    text += " "
                    if number in row.evidence:
                        evidence.append((len(text), len(text) + len(row.facts[number])))
                    text += row.facts[number]
            if at < len(chosen):
                text += chosen[at].joiner + chosen[at].text
        cut = len(text) - len(text.lstrip())
        return request.sample(
            text.strip(),
            f"\n\nQuestion: {row.question}\nAnswer with nothing but the word or words.",
            f" {row.answer.replace(',', ', ')}",
            [row.answer],
            answer_prefix="The answer is: the" if row.task in PLACES else "The answer is:",
            max_new_tokens=REPLY,
            choices=_choices(request, row),
            evidence=[(start - cut, end - cut) for start, end in evidence],
        )

    return fit(request, _other(request), make)


def _choices(request: Request, row: BabiRow) -> list[str]:
    """The words that answer any question of the task, without those of this question."""
    answers = {one.answer for one in data.rows_of(open_babi, request.task.files[0])}
    asked = set(re.findall(r"\w+", row.question.lower()))
    return sorted({
        word for answer in answers for word in answer.split(",")
        if word and word.lower() not in asked
    })


def _other(request: Request) -> list[Piece]:
    """Sentences of the half's articles, from a drawn article on."""
    texts = data.half(articles(data.text_of(data.ARTICLES)), request.split)
    at = request.rng("filler").randrange(len(texts))
    pieces: list[Piece] = []
    room = CHARACTERS * (request.length + 160)
    for text in [*texts[at:], *texts[:at]]:
        for paragraph in text.split("\n\n"):
            if room < 0:
                return pieces
            room -= len(paragraph)
            sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph.strip())
            pieces += [Piece(" " if i else "\n\n", one) for i, one in enumerate(sentences) if one]
    return pieces


TASKS = tuple(
    Task(
        f"babilong_qa{number}",
        "babilong",
        "words",
        f"A question of bAbI ({name.replace('-', ' ')}), its facts scattered over other text.",
        lambda request: take(request, lambda: _rows(request), _babilong),
        haystacks=(DATA,),
        files=(f"babi/qa{number}_{name}_test.txt", data.ARTICLES),
    )
    for number, name in enumerate(NAMES, 1)
)
