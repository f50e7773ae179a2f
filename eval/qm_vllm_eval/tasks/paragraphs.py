"""Questions over published paragraphs: one of them holds the answer, or two together do.

``paragraphs`` are of SQuAD (Rajpurkar et al. 2016; the part that XQuAD chose, Artetxe et al. 2020),
``hotpot`` of HotpotQA (Yang et al. 2018). That paragraphs are joined to a length follows RULER.
"""

from __future__ import annotations

from typing import Any

from qm_vllm_eval.haystacks import Piece
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import data
from qm_vllm_eval.tasks.base import DATA, Request, Task, Unfit, fit, insert, join
from qm_vllm_eval.tasks.question_answering import REPLY

FEWEST = 10
"""Characters that the shortest paragraph has."""
MOST = 2
"""Characters of evidence for each token of a prompt: it fills about half of it at most."""


def _squad(request: Request) -> Sample:
    articles = data.half(data.json_of(data.SQUAD)["data"], request.split)
    article = data.turn_of(articles, request.turn, "article")
    rng = request.rng("question")
    evidence = rng.choice(article["paragraphs"])
    asked = rng.choice(evidence["qas"])
    answer = asked["answers"][0]["text"].strip(" .,;:")
    others = [
        paragraph["context"]
        for other in articles if other is not article
        for paragraph in other["paragraphs"]
    ]
    return _asked(
        request, asked["question"], answer, [evidence["context"]], [request.depth()],
        request.rng("filler").sample(others, len(others)),
    )


def _hotpot(request: Request) -> Sample:
    items = hotpot_items(request)
    item = data.turn_of(items, request.turn, "question")
    rng = request.rng("filler")
    pair = [titled(item["title_a"], item["para_a"]), titled(item["title_b"], item["para_b"])]
    own = [titled(*other[:2]) for other in item["distractors"]]
    others = [
        titled(*other[:2]) for another in items if another is not item
        for other in another["distractors"]
    ]
    filler = rng.sample(own, len(own)) + rng.sample(others, len(others))
    return _asked(
        request, item["question"], item["answer"], rng.sample(pair, 2), request.depths(2),
        list(dict.fromkeys(filler)),
    )


def hotpot_items(request: Request) -> list[dict[str, Any]]:
    """Questions of the half whose answer the two paragraphs say and the question does not.

    The paragraphs fill about half of the prompt at most.
    """
    return [
        item for item in data.half(data.json_of(data.HOTPOT), request.split)
        if item["answer"] in (said := "".join(item["para_a"] + item["para_b"]))
        and item["answer"].lower() not in item["question"].lower()
        and len(said) <= MOST * request.length
    ]


def titled(title: str, sentences: list[str]) -> str:
    """A paragraph of HotpotQA as one text."""
    return f"{title}: {''.join(sentences)}"


def _asked(
    request: Request, question: str, answer: str, evidence: list[str], depths: list[float],
    filler: list[str],
) -> Sample:
    """The evidence at its depths among paragraphs that do not say the answer."""
    if not answer or answer.lower() in question.lower():
        raise Unfit("the question says the answer")
    plain = [text.strip() for text in filler if answer.lower() not in text.lower()]
    pieces = [Piece("\n\n", text) for text in plain if len(text) >= FEWEST]

    def make(chosen: list[Piece]) -> Sample:
        placed: list[Any] = insert(chosen, [text.strip() for text in evidence], depths)
        return request.sample(
            join([Piece("\n\n", piece.text) for piece in placed]),
            f"\n\nQuestion: {question.strip()} Answer in a few words.",
            f" {answer}",
            [answer],
            answer_prefix="Answer:",
            max_new_tokens=REPLY,
        )

    return fit(request, pieces, make)


TASKS = (
    Task(
        "paragraphs",
        "squad",
        "any",
        "A question of SQuAD, its paragraph hidden among paragraphs of other articles.",
        _squad,
        haystacks=(DATA,),
        minimum=768,
        files=(data.SQUAD,),
    ),
    Task(
        "hotpot",
        "hotpot",
        "any",
        "A question of HotpotQA whose answer needs two paragraphs among distractors.",
        _hotpot,
        haystacks=(DATA,),
        minimum=768,
        files=(data.HOTPOT,),
    ),
)
