"""Several planted sentences of one form: which of them is meant, or all that belong together.

After the multi-key, multi-value and multi-query needles of RULER (Hsieh et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

from qm_vllm_eval.haystacks import Piece
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import vocabulary
from qm_vllm_eval.tasks.base import Request, Task, fit, insert, join

FAMILY = "multi_needle"
KEYS = 4
VALUES = 3


def _plant_all(
    request: Request, sentences: Sequence[str], question: str, prefix: str, numbers: Sequence[str]
) -> Sample:
    """The sentences in order, one in each equal part of the prose; ``numbers`` are asked for."""
    depths = request.depths(len(sentences))
    target = " " + " and ".join(filter(None, (", ".join(numbers[:-1]), numbers[-1])))

    def make(pieces: list[Piece]) -> Sample:
        context = join(insert(pieces, sentences, depths))
        return request.sample(context, f"\n\n{question}", target, numbers, answer_prefix=prefix)

    return fit(request, request.filler(), make)


def _pairs(request: Request) -> tuple[list[str], list[str]]:
    """KEYS keys with a number each, all different."""
    rng = request.rng("needle")
    keys = rng.sample(vocabulary.nouns(request.split), KEYS)
    numbers: list[str] = []
    while len(numbers) < KEYS:
        number = vocabulary.digits(rng)
        if number not in numbers:
            numbers.append(number)
    return keys, numbers


def _multikey(request: Request) -> Sample:
    keys, numbers = _pairs(request)
    asked = int(request.depth() * KEYS)  # evenly spread over the indices, as for one needle
    return _plant_all(
        request,
        [f"The secret number of the {k} is {n}." for k, n in zip(keys, numbers, strict=True)],
        f"What is the secret number of the {keys[asked]}? Answer with the number.",
        f"The secret number of the {keys[asked]} is",
        [numbers[asked]],
    )


def _multivalue(request: Request) -> Sample:
    keys, numbers = _pairs(request)
    return _plant_all(
        request,
        [f"One of the secret numbers of the {keys[0]} is {n}." for n in numbers[:VALUES]],
        f"What are the three secret numbers of the {keys[0]}? Answer with the numbers, in the "
        "order of the text.",
        f"The three secret numbers of the {keys[0]} are",
        numbers[:VALUES],
    )


def _multiquery(request: Request) -> Sample:
    keys, numbers = _pairs(request)
    one, two = request.rng("asked").sample(range(KEYS), 2)
    return _plant_all(
        request,
        [f"The secret number of the {k} is {n}." for k, n in zip(keys, numbers, strict=True)],
        f"What are the secret numbers of the {keys[one]} and the {keys[two]}? Answer with the two "
        "numbers.",
        f"The secret numbers of the {keys[one]} and the {keys[two]} are",
        [numbers[one], numbers[two]],
    )


TASKS = (
    Task("needle_multikey", FAMILY, "all", "Four keys with numbers, one is asked.", _multikey),
    Task("needle_multivalue", FAMILY, "all", "One key, three numbers, all asked.", _multivalue),
    Task("needle_multiquery", FAMILY, "all", "Four keys with numbers, two asked.", _multiquery),
)
