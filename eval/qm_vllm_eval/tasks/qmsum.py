"""QMSum: a query about a part of a meeting; the turns that tell the answer are known.

Zhong et al. 2021. The queries about whole meetings are those of LongBench's qmsum.
"""

from __future__ import annotations

from qm_vllm_eval.datasets.qmsum import QmsumRow, open_qmsum
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import data
from qm_vllm_eval.tasks.base import DATA, Request, Task
from qm_vllm_eval.tasks.documents import in_turns, take, target_of, window
from qm_vllm_eval.tasks.mentions import words_of

FILE = "qmsum/test.jsonl"
PAGE = 512
"""Tokens of a prediction."""


def _rows(request: Request) -> list[QmsumRow]:
    """The queries with evidence of one half of the meetings, one of each meeting in turn."""
    meetings: dict[int, list[QmsumRow]] = {}
    for row in data.rows_of(open_qmsum, FILE):
        if row.usable and row.evidence:
            meetings.setdefault(row.meeting, []).append(row)
    return in_turns(data.half(list(meetings.values()), request.split))


def _qmsum(request: Request, row: QmsumRow) -> Sample:
    """The meeting, cut to a window that holds all turns of the evidence."""
    words: list[str] = []
    starts = []  # of the turns, in words
    for turn in row.turns:
        starts.append(len(words))
        words += words_of(f"{turn}\n")
    starts.append(len(words))
    spans = [(starts[first], starts[last + 1]) for first, last in row.evidence]

    def make(start: int, end: int) -> Sample:
        def characters(word: int) -> int:
            return sum(map(len, words[start:word]))

        return request.sample(
            "".join(words[start:end]).rstrip(),
            f"\n\nAnswer this query about the meeting in a few sentences: {row.query}",
            target_of(request, row.answer),
            [row.answer],
            answer_prefix="Answer:",
            max_new_tokens=PAGE,
            evidence=[(characters(first), characters(last)) for first, last in spans],
        )

    first, last = min(first for first, _ in spans), max(last for _, last in spans)
    return window(request, words, first, last, make)


TASKS = (
    Task(
        "qmsum",
        "qmsum",
        "rouge_best",
        "A query about a part of a meeting, among the turns before and behind it.",
        lambda request: take(request, lambda: _rows(request), _qmsum),
        haystacks=(DATA,),
        files=(FILE,),
        room=PAGE + 32,
    ),
)
