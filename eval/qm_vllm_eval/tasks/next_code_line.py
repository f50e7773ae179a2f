"""Code completion: real code up to a line, cut from the left, and the line that follows.

The code is that of LCC and RepoBench-P in MiniLongBench (Huang et al. 2025).
"""

from __future__ import annotations

import re

from qm_vllm_eval.prompt import prompt_length
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import data
from qm_vllm_eval.tasks.base import DATA, TOLERANCE, Request, Task, Unfit

FAMILY = "code"
HEAD, TAIL = "Please complete the code given below.", "Next line of code:"
"""What the published prompts put around the code."""
MOST = 12
"""Characters of code a token that are looked at: more than any tokenizer's mean."""


def _next_line(request: Request) -> Sample:
    rows = [row for name in data.CODE for row in data.json_of(name)]
    codes = [
        (code, row["gold"][0]) for row in data.half(rows, request.split)
        if row["gold"][0].strip()
        and len(code := _code(row["prompt"], request.length)) >= data.CHARACTERS * request.length
    ]
    code, line = data.turn_of(codes, request.turn + request.draw, "code")
    sample = request.sample(
        _end_of(code, request), "", "\n" + line.rstrip(), (), chat=False, max_new_tokens=0
    )
    if not request.length - TOLERANCE <= prompt_length(sample, request.tokenizer):
        raise Unfit("no word begins at this length")
    return sample


def _code(prompt: str, length: int) -> str:
    """The end of the code between the words of the published prompt."""
    code = prompt.strip().removeprefix(HEAD).removesuffix(TAIL)
    return code.rstrip()[-MOST * length :]


def _end_of(code: str, request: Request) -> str:
    """As much of the code's end as the length allows, from a line's beginning if one is near."""
    starts = [found.start() for found in re.finditer(r"\S+", code)]
    room = request.length - 1  # a token that begins a text, if the tokenizer has one
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        if request.count(code[starts[middle] :]) <= room:
            high = middle
        else:
            low = middle + 1
    for start in starts[low:]:
        if request.count(code[start:]) < request.length - TOLERANCE // 2:
            break
        line = code.rfind("\n", 0, start) + 1
        if not code[line:start].strip() and request.count(code[line:]) <= room:
            return code[line:]
    return code[starts[low] :]


TASKS = (
    Task(
        "next_code_line",
        FAMILY,
        "tokens",
        "The next line of real code; the prompt ends where it begins.",
        _next_line,
        haystacks=(DATA,),
        files=data.CODE,
    ),
)
