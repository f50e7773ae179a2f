"""L-Eval's tasks with its scores: exams, questions and summaries of one document (An et al. 2023).

Its grade-school problems (gsm100) are left out: their answers come after reasoning that the data
do not hold, so there is no text whose likelihood could be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qm_vllm_eval.datasets.leval import LevalRow, open_leval
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import data
from qm_vllm_eval.tasks.base import DATA, Request, Task, Unfit
from qm_vllm_eval.tasks.documents import around, in_turns, longest, take, target_of, whole
from qm_vllm_eval.tasks.mentions import NEAR, mention, words_of

REPLY, ANSWER, PAGE = 32, 128, 512
"""Tokens of a prediction."""

Build = Callable[[Request, LevalRow], Sample]


def _rows(request: Request) -> list[LevalRow]:
    """The questions of one half: those about one text together, a question of each in turn."""
    documents: dict[str, dict[str, LevalRow]] = {}
    for row in data.rows_of(open_leval, request.task.files[0]):
        if row.usable:
            documents.setdefault(row.document.strip(), {}).setdefault(row.question, row)
    held = [list(questions.values()) for questions in documents.values()]
    return in_turns(data.half(held, request.split))


def _choice(request: Request, row: LevalRow) -> Sample:
    """A question with choices about the whole document."""
    return whole(request, row.document, lambda text: request.sample(
        text,
        f"\n\n{row.question}\n\nAnswer with the letter of the right choice.",
        target_of(request, row.answer),
        [row.answer],
        answer_prefix="Answer:",
        max_new_tokens=REPLY,
    ))


def _true_or_false(request: Request, row: LevalRow) -> Sample:
    """Whether something holds in the told world, whatever holds in ours."""
    answer = row.answer.split(maxsplit=1)[0]
    if answer not in ("True", "False"):
        raise Unfit("the answer is neither true nor false")
    return whole(request, row.document, lambda text: request.sample(
        text, f"\n\n{row.question}", f" {answer}", [answer], answer_prefix="Answer:",
        max_new_tokens=REPLY, choices=("True", "False"),
    ))


def _topic(request: Request, row: LevalRow) -> Sample:
    """The first, second or third topic of a conversation, whose end may be cut."""
    words = words_of(row.document)
    place = mention(words, "", [row.answer])
    if place is None:
        raise Unfit("the conversation does not say its topic")

    def make(count: int) -> Sample:
        return request.sample(
            "".join(words[:count]).strip(), f"\n\n{row.question}", f" {row.answer}", [row.answer],
            answer_prefix="Answer:", max_new_tokens=REPLY,
        )

    return longest(request, make, len(words), min(len(words), place[1] + NEAR))


def _question(request: Request, row: LevalRow) -> Sample:
    """A question about a document, which is cut to a window around its answer."""
    return around(request, row.document, row.question, [row.answer], lambda text: request.sample(
        text,
        f"\n\nQuestion: {row.question}\nAnswer in a few words.",
        target_of(request, row.answer),
        [row.answer],
        answer_prefix="Answer:",
        max_new_tokens=ANSWER,
    ))


def _summary(request: Request, row: LevalRow) -> Sample:
    return whole(request, row.document, lambda text: request.sample(
        text, f"\n\n{row.question}", target_of(request, row.answer), [row.answer],
        answer_prefix="Summary:", max_new_tokens=PAGE,
    ))


def _task(name: str, group: str, metric: str, description: str, build: Build) -> Task:
    folder = "Closed-ended-tasks" if group == "exam" else "Open-ended-tasks"
    return Task(
        f"leval_{name}",
        f"leval_{group}",
        metric,
        description,
        lambda request: take(request, lambda: _rows(request), build),
        haystacks=(DATA,),
        files=(f"leval/{folder}/{name}.jsonl",),
        room=(PAGE if group == "summary" else ANSWER) + 32,
    )


_ROWS: Sequence[tuple[str, str, str, str, Build]] = (
    ("quality", "exam", "letter", "A question with four choices about a story.", _choice),
    ("sci_fi", "exam", "words", "Whether something is true in a story.", _true_or_false),
    ("topic_retrieval_longchat", "exam", "any", "An early topic of a conversation.", _topic),
    ("scientific_qa", "question", "f1", "A question about a paper.", _question),
    ("multidoc_qa", "question", "f1", "A question about several documents.", _question),
    ("natural_question", "question", "f1", "A question about an article.", _question),
    ("legal_contract_qa", "question", "f1", "A clause of a contract.", _question),
    ("gov_report_summ", "summary", "rouge_best", "A summary of a report.", _summary),
    ("patent_summ", "summary", "rouge_best", "A summary of a patent.", _summary),
)
TASKS = tuple(_task(*row) for row in _ROWS)
