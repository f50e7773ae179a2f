"""Language modelling on Wikipedia: the next 128 tokens of an article of WikiText (Merity 2016)."""

from __future__ import annotations

import re

from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import data
from qm_vllm_eval.tasks.base import DATA, Request, Task
from qm_vllm_eval.tasks.continuation import CONTINUED, continued

_TITLE = re.compile(r"(?m)^ = (?!=)(.*\S)(?<!=) = $")
_SPARE = 32


def _wikitext(request: Request) -> Sample:
    wanted = request.length + CONTINUED + _SPARE
    texts = [
        text for text in data.half(articles(data.text_of(data.ARTICLES)), request.split)
        if len(text) > data.CHARACTERS * wanted
    ]
    text = data.turn_of(texts, request.turn, "article")
    # With some tokenizers no word ends where one must: a word less in front moves all of them.
    return continued(request, text.split(" ", request.draw)[-1])


def articles(raw: str) -> list[str]:
    """The articles of a raw file with their titles, as one would write them.

    The published text parts every punctuation mark from its word; ``@-@`` stands for a hyphen.
    """
    parts = _TITLE.split(raw)
    return [
        f"{_written(title)}\n\n{_written(body)}"
        for title, body in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _written(body: str) -> str:
    text = re.sub(r" @([-,.])@ ", r"\1", body)
    text = re.sub(r" ([.,;:!?)])", r"\1", re.sub(r"\( ", "(", text))
    lines = (re.sub(r"^(?:= )+|(?: =)+$", "", line.strip()) for line in text.splitlines())
    return "\n\n".join(line for line in lines if line)


TASKS = (
    Task(
        "wikitext",
        "wikitext",
        "none",
        "The likelihood of the next 128 tokens of a Wikipedia article.",
        _wikitext,
        haystacks=(DATA,),
        files=(data.ARTICLES,),
    ),
)
