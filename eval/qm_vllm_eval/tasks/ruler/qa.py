"""RULER's two question-answering tasks: documents that hold the answer among others.

qa_1 is of SQuAD (Rajpurkar et al. 2016; the paragraphs that XQuAD chose, Artetxe et al. 2020), qa_2
of HotpotQA (Yang et al. 2018). The first distractors are those of the question's own article or
set, then others of the same data, then, in prompts that these do not fill, paragraphs of the other
data. Questions that are answered with yes or no, or that say their answer, are left out: nothing of
the context could be found in their replies.
"""

from __future__ import annotations

from collections.abc import Callable

from qm_vllm_eval.haystacks import Piece
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import data
from qm_vllm_eval.tasks.base import DATA, Request, Task, Unfit, fit, insert
from qm_vllm_eval.tasks.paragraphs import hotpot_items, titled
from qm_vllm_eval.tasks.ruler.base import FAMILY

REPLY = 32
"""Tokens of a prediction, as in the paper."""
_SPARE = 64


def _squad_texts(split: str) -> list[str]:
    """The paragraphs of all articles of one half."""
    articles = data.half(data.json_of(data.SQUAD)["data"], split)
    return [part["context"].strip() for article in articles for part in article["paragraphs"]]


def _hotpot_texts(split: str) -> list[str]:
    """The distractors of all questions of one half, with their titles."""
    items = data.half(data.json_of(data.HOTPOT), split)
    every = [titled(*other[:2]).strip() for item in items for other in item["distractors"]]
    return list(dict.fromkeys(every))


def _squad(request: Request) -> Sample:
    articles = data.half(data.json_of(data.SQUAD)["data"], request.split)
    article = data.turn_of(articles, request.turn, "article")
    rng = request.rng("question")
    paragraph = rng.choice(article["paragraphs"])
    asked = rng.choice(paragraph["qas"])
    answers = [answer["text"].strip(" .,;:") for answer in asked["answers"]]
    own = [part["context"].strip() for part in article["paragraphs"] if part is not paragraph]
    filler = [own, _squad_texts(request.split), _hotpot_texts(request.split)]
    return _asked(
        request, asked["question"], list(dict.fromkeys(answers)), [paragraph["context"].strip()],
        [request.depth()], filler,
    )


def _hotpot(request: Request) -> Sample:
    item = data.turn_of(hotpot_items(request), request.turn, "question")
    pair = [titled(item["title_a"], item["para_a"]), titled(item["title_b"], item["para_b"])]
    own = [titled(*other[:2]).strip() for other in item["distractors"]]
    return _asked(
        request, item["question"], [item["answer"]],
        request.rng("pair").sample([text.strip() for text in pair], 2), request.depths(2),
        [own, _hotpot_texts(request.split), _squad_texts(request.split)],
    )


def _asked(
    request: Request, question: str, answers: list[str], evidence: list[str],
    depths: list[float], filler: list[list[str]],
) -> Sample:
    """The documents with the evidence at its depths.

    Args:
        filler: groups of distractors, the next one for prompts that those before do not fill.
    """
    if not all(answers) or any(answer.lower() in question.lower() for answer in answers):
        raise Unfit("the question says the answer")
    rng = request.rng("filler")
    others: dict[str, None] = {}
    for group in filler:
        others |= dict.fromkeys(rng.sample(group, len(group)))
    pieces: list[Piece] = []
    total = 0
    for text in others:
        if text in evidence:
            continue
        pieces.append(Piece("\n\n", text))
        total += request.count(text)
        if total >= request.length + _SPARE:
            break
    else:
        raise ValueError(
            f"the data has {total} tokens of distractors for {request.task.name}; take a length "
            "below that"
        )
    ranks = rng.sample(range(len(pieces)), len(pieces))

    def make(chosen: list[Piece]) -> Sample:
        mixed = [chosen[i] for i in sorted(range(len(chosen)), key=ranks.__getitem__)]
        documents = insert(mixed, evidence, depths)
        return request.sample(
            "Find the answer to a question in these documents.\n\n" + "\n\n".join(
                f"Document {number}:\n{one.text}" for number, one in enumerate(documents, 1)
            ),
            f"\n\nAnswer from the documents with a few words and nothing else.\n"
            f"Question: {question.strip()}",
            f" {answers[0]}",
            answers,
            answer_prefix="Answer:",
            max_new_tokens=REPLY,
        )

    return fit(request, pieces, make)


def _task(name: str, description: str, build: Callable[[Request], Sample]) -> Task:
    return Task(
        name, FAMILY, "any", description, build, haystacks=(DATA,), minimum=768,
        files=(data.SQUAD, data.HOTPOT),
    )


TASKS = (
    _task("qa_1", "A question of SQuAD, its paragraph among other documents.", _squad),
    _task("qa_2", "A question of HotpotQA, its two paragraphs among other documents.", _hotpot),
)
