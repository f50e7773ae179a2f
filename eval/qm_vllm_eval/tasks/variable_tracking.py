"""A value handed from variable to variable through a long text.

After the variable tracking of RULER (Hsieh et al. 2024). A second, shorter chain with another
value stands in the same text, so that listing every variable is wrong.
"""

from __future__ import annotations

import random
import string

from qm_vllm_eval.haystacks import Piece
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import vocabulary
from qm_vllm_eval.tasks.base import Request, Task, fit, insert, join

FAMILY = "tracking"
HOPS = (3, 4)


def _variables(rng: random.Random, count: int) -> list[str]:
    """Different names of three capital letters, each with its own first letter."""
    letters = rng.sample(string.ascii_uppercase, count)
    return [first + "".join(rng.choices(string.ascii_uppercase, k=2)) for first in letters]


def chain(names: list[str], value: str) -> list[str]:
    """The assignments, one for each name: the value to the first, each name to the next."""
    pairs = zip(names[1:], names, strict=False)
    return [f"VAR {names[0]} = {value}.", *(f"VAR {new} = VAR {old}." for new, old in pairs)]


def _tracking(request: Request) -> Sample:
    rng = request.rng("chain")
    hops = rng.choice(HOPS)
    names = _variables(rng, hops + 3)
    wanted, other = names[: hops + 1], names[hops + 1 :]
    value, decoy = vocabulary.digits(rng, 5), vocabulary.digits(rng, 5)
    while decoy == value:
        decoy = vocabulary.digits(rng, 5)
    # Both chains in order, shuffled into each other.
    chains = [chain(wanted, value), chain(other, decoy)]
    turns = [0] * len(chains[0]) + [1] * len(chains[1])
    rng.shuffle(turns)
    sentences = [chains[turn].pop(0) for turn in turns]
    depths = request.depths(len(sentences))
    question = (
        f"\n\nWhich variables have the value {value}, by themselves or through others? List all "
        f"{len(wanted)} of them."
    )

    def make(pieces: list[Piece]) -> Sample:
        return request.sample(
            join(insert(pieces, sentences, depths)),
            question,
            " " + ", ".join(wanted),
            wanted,
            answer_prefix=f"The variables with the value {value} are",
        )

    return fit(request, request.filler(), make)


TASKS = (
    Task(
        "variable_tracking",
        FAMILY,
        "all",
        "A chain of three or four assignments in prose; all its variables are asked.",
        _tracking,
    ),
)
