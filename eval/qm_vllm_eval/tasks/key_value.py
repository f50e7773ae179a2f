"""Look-up among like keys: lines of random keys and numbers, of which one is asked.

After the key-value retrieval of Liu et al. (2023, "Lost in the middle"), in shorter lines. Nothing
but the key itself tells the lines apart.
"""

from __future__ import annotations

from qm_vllm_eval.haystacks import Piece
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks.base import WORDS, Request, Task, Unfit, fit

FAMILY = "key_value"


def _key_value(request: Request) -> Sample:
    rng = request.rng("lines")
    # A line has ten tokens or more with any tokenizer of characters, bytes or numbers.
    lines = [
        f'"{rng.getrandbits(32):08x}": "{rng.randrange(10**5, 10**6)}",'
        for _ in range(request.length // 4)
    ]
    depth = request.depth()
    whole = set(lines)

    def make(pieces: list[Piece]) -> Sample:
        listed = [piece.text for piece in pieces if piece.text in whole]
        if len(listed) < 4:
            raise Unfit("too few lines")
        key, value = listed[int(depth * len(listed))].strip(",").split(": ")
        return request.sample(
            "{\n" + "\n".join(listed) + "\n}",
            f"\n\nWhich value belongs to the key {key}?",
            f" {value}",
            [value.strip('"')],
            answer_prefix=f"The value of the key {key} is",
        )

    return fit(request, [Piece("\n", line) for line in lines], make)


TASKS = (
    Task(
        "key_value",
        FAMILY,
        "all",
        "One value of a list of random keys and numbers.",
        _key_value,
        haystacks=(WORDS,),
    ),
)
