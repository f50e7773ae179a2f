"""LongBench's English tasks with its scores, on the samples that MiniLongBench chose.

Bai et al. 2024 and Huang et al. 2025. The questions around the documents are worded here; code,
shots and passages stand as published.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from qm_vllm_eval.datasets.longbench import LongBenchRow, open_longbench
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import data
from qm_vllm_eval.tasks.base import DATA, Request, Task, Unfit
from qm_vllm_eval.tasks.documents import around, ending, take, target_of, whole, with_filler
from qm_vllm_eval.tasks.mentions import mention, said_answer, words_of

LINES, REPLY, SENTENCE, PAGE = 64, 32, 128, 512
"""Tokens of a prediction, as LongBench has them."""

Build = Callable[[Request, LongBenchRow], Sample]


def _rows(request: Request) -> list[LongBenchRow]:
    """The usable samples of one half, each context once."""
    rows = [row for row in data.rows_of(open_longbench, request.task.files[0]) if row.usable]
    return data.half(list({row.context: row for row in rows}.values()), request.split)


def _asked(request: Request, row: LongBenchRow, text: str, tokens: int) -> Sample:
    return request.sample(
        text,
        f"\n\nQuestion: {row.input}\nAnswer in a few words.",
        target_of(request, said_answer(text, row.answers)),
        row.answers,
        answer_prefix="Answer:",
        max_new_tokens=tokens,
    )


def _document(tokens: int) -> Build:
    """A question about one text, which is cut to a window around its answer."""
    def build(request: Request, row: LongBenchRow) -> Sample:
        return around(
            request, row.context, row.input, row.answers,
            lambda text: _asked(request, row, text, tokens),
        )

    return build


def _passages(request: Request, row: LongBenchRow) -> Sample:
    """A question over passages: those that say an answer or that it names stay whole."""
    passages = re.split(r"\n+(?=Passage \d+:\n)", row.context.strip())
    named = {number for number, passage in enumerate(passages) if _names(row.input, passage)}
    told = {
        number for number, passage in enumerate(passages)
        if mention(words_of(passage), row.input, row.answers)
    }
    if not told and len(named) < 2:
        return whole(request, row.context, lambda text: _asked(request, row, text, REPLY))
    return with_filler(
        request, passages, named | told, lambda text: _asked(request, row, text, REPLY)
    )


def _names(question: str, passage: str) -> bool:
    """Whether a question names a passage: its second line, without what stands in brackets."""
    _, _, rest = passage.partition("\n")
    title = re.sub(r"\s*\(.*\)$", "", rest.split("\n", 1)[0]).strip()
    pattern = rf"(?<!\w){re.escape(title)}(?!\w)"
    return bool(title) and re.search(pattern, question, re.IGNORECASE) is not None


def _retrieval(request: Request, row: LongBenchRow) -> Sample:
    """Which paragraph is summed up: it stays whole, and all keep their numbers."""
    paragraphs = re.split(r"\n+(?=Paragraph \d+: )", row.context.strip())
    wanted = f"{row.answers[0]}: "
    keep = {number for number, text in enumerate(paragraphs) if text.startswith(wanted)}
    if len(keep) != 1:
        raise Unfit("the paragraph is not there")
    return with_filler(request, paragraphs, keep, lambda text: request.sample(
        text,
        f"\n\nThis sums up one of the paragraphs: {row.input}\n\nWhich paragraph is it? Answer "
        'with its number, as in "Paragraph 1".',
        f" {row.answers[0]}",
        row.answers,
        answer_prefix="Answer:",
        max_new_tokens=REPLY,
    ))


def _count(request: Request, row: LongBenchRow) -> Sample:
    return whole(request, row.context, lambda text: request.sample(
        text,
        "\n\nSome of these paragraphs are repeated. How many different ones are there? Answer "
        "with a number.",
        f" {row.answers[0]}",
        row.answers,
        answer_prefix="Answer:",
        max_new_tokens=REPLY,
    ))


def _summary(question: str, prefix: str) -> Build:
    """A summary of the whole document."""
    def build(request: Request, row: LongBenchRow) -> Sample:
        return whole(request, row.context, lambda text: request.sample(
            text,
            question.format(row.input),
            target_of(request, row.answers[0]),
            row.answers,
            answer_prefix=prefix,
            max_new_tokens=PAGE,
        ))

    return build


def _classes(request: Request, row: LongBenchRow) -> Sample:
    """The class of a question after labelled ones: the last shots stay, whole."""
    shots = re.findall(r"Question: .*?\nType: [^\n]*\n+", row.context + "\n", re.DOTALL)
    return ending(request, shots, lambda text: request.sample(
        text, row.input, f" {row.answers[0]}", row.answers, chat=False, choices=row.classes,
        max_new_tokens=REPLY,
    ))


def _trivia(request: Request, row: LongBenchRow) -> Sample:
    """A question about a passage after others with answers: the passage stays whole."""
    passage, found, question = row.input.rpartition("Question:")
    if not found:
        raise Unfit("there is no question")
    shots, own = words_of(row.context), words_of(passage)
    return ending(
        request, [*shots, *own],
        lambda text: request.sample(
            text, f"{found}{question}", "\n" + said_answer(text, row.answers), row.answers,
            chat=False, max_new_tokens=REPLY,
        ),
        fewest=len(own),
    )


def _code(request: Request, row: LongBenchRow) -> Sample:
    """The next line of code: the last lines before it stay."""
    code = f"{row.context}{row.input}".rstrip()
    lines = code[-12 * request.length :].splitlines(keepends=True)
    return ending(request, lines, lambda text: request.sample(
        text, "", "\n" + row.answers[0], row.answers, chat=False, max_new_tokens=LINES,
    ))


def _task(name: str, group: str, metric: str, description: str, build: Build, room: int) -> Task:
    return Task(
        f"longbench_{name.replace('-', '_')}",
        f"longbench_{group}",
        metric,
        description,
        lambda request: take(request, lambda: _rows(request), build),
        haystacks=(DATA,),
        files=(f"minilongbench_en/{name}.jsonl",),
        room=room + 32,
    )


_REPORT = "\n\nWrite a summary of this report, about one page long."
_QUERY = "\n\nAnswer this query about the meeting in one or more sentences: {}"
_ROWS: Sequence[tuple[str, str, str, str, Build, int]] = (
    ("qasper", "document", "f1", "A question about a paper.", _document(SENTENCE), SENTENCE),
    ("multifieldqa_en", "document", "f1", "A question about a text.", _document(LINES), SENTENCE),
    ("hotpotqa", "passages", "f1", "A question of HotpotQA over articles.", _passages, SENTENCE),
    ("2wikimqa", "passages", "f1", "A question of 2WikiMultihopQA.", _passages, SENTENCE),
    ("musique", "passages", "f1", "A question of MuSiQue over articles.", _passages, SENTENCE),
    ("gov_report", "summary", "rouge_best", "A summary of a report.",
     _summary(_REPORT, "Summary:"), PAGE),
    ("qmsum", "summary", "rouge_best", "A query about a meeting.",
     _summary(_QUERY, "Answer:"), PAGE),
    ("trec", "shots", "class", "The class of a question after labelled ones.", _classes, SENTENCE),
    ("triviaqa", "shots", "f1_line", "A question of TriviaQA after answered ones.", _trivia,
     SENTENCE),
    ("passage_count", "synthetic", "numbers", "How many paragraphs differ.", _count, SENTENCE),
    ("passage_retrieval_en", "synthetic", "numbers", "The paragraph that is summed up.",
     _retrieval, SENTENCE),
    ("lcc", "code", "edit", "The next line of a file.", _code, SENTENCE),
    ("repobench-p", "code", "edit", "The next line of a file among others.", _code, SENTENCE),
)  # fmt: skip
TASKS = tuple(_task(*row) for row in _ROWS)
