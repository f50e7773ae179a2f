"""SQuALITY: a question about a whole short story, four human answers (Wang et al. 2022)."""

from __future__ import annotations

from qm_vllm_eval.datasets.squality import SqualityRow, open_squality
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import data
from qm_vllm_eval.tasks.base import DATA, Request, Task
from qm_vllm_eval.tasks.documents import in_turns, take, target_of, whole

FILES = ("squality/dev.jsonl", "squality/test.jsonl")
PAGE = 512
"""Tokens of a prediction: the human answers have about 240 words."""


def _rows(request: Request) -> list[SqualityRow]:
    """The questions of one half of the stories, one of each story in turn."""
    stories: dict[str, list[SqualityRow]] = {}
    for name in FILES:
        for row in data.rows_of(open_squality, name):
            if row.usable:
                stories.setdefault(row.story_id, []).append(row)
    return in_turns(data.half(list(stories.values()), request.split))


def _squality(request: Request, row: SqualityRow) -> Sample:
    return whole(request, row.story, lambda text: request.sample(
        text,
        f"\n\n{row.question}\nAnswer in about 200 words.",
        target_of(request, row.references[0]),
        row.references,
        answer_prefix="Answer:",
        max_new_tokens=PAGE,
    ))


TASKS = (
    Task(
        "squality",
        "squality",
        "rouge_best",
        "A long answer to a question about a whole short story.",
        lambda request: take(request, lambda: _rows(request), _squality),
        haystacks=(DATA,),
        files=FILES,
        room=PAGE + 32,
    ),
)
