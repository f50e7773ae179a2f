"""The prompts of a file that can be measured with a model, and why the others cannot."""

from __future__ import annotations

import codecs
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qm_vllm.errors import UserError
from qm_vllm_eval.own.line import Line, LineRefused, parse_line
from qm_vllm_eval.prompt import prompt_parts
from qm_vllm_eval.sample import Sample, sample_id

GIVEN, OWN = "given_answers", "own_answers"
"""Tasks of prompts whose file says what is right, and of those that the model answers itself."""
LENGTH = 0
"""What stands for the length of samples that have each their own."""
SPLIT = "report"
SHORTEST_REPLY = 24
"""Tokens that a prediction has at least: small models answer in a sentence, however asked."""
TOLD = 8
"""Reasons that are told where no line can be used."""


@dataclass(frozen=True)
class OwnPrompt:
    """A usable line.

    Attributes:
        sample: query-visible; without target and ``max_new_tokens`` 0 where the model's own answer
            is the reference.
        tokens: N of the full prompt. reply: tokens that an answer may have.
    """

    sample: Sample
    tokens: int
    reply: int

    @property
    def is_own(self) -> bool:
        """Whether the model's own answer is the reference."""
        return self.sample.task == OWN


@dataclass(frozen=True)
class Reading:
    """How a line becomes a sample.

    Attributes:
        chat: a "prompt" is a user's turn in the model's chat template, not plain text.
        answer_tokens: length of the model's own answers, at most.
        window: tokens that the model takes, prompt and answer together; None: not known.
        fewest: tokens that a prompt needs to be worth its compression.
    """

    chat: bool = True
    answer_tokens: int = 64
    window: int | None = None
    fewest: int = 2


def read_prompts(
    path: Path, tokenizer: Any, reading: Reading
) -> tuple[list[OwnPrompt], dict[int, str]]:
    """The usable lines of a file in their order, and a reason for each of the others by number.

    Raises:
        UserError: the file cannot be read, or no line of it can be used.
    """
    found: list[OwnPrompt] = []
    problems: dict[int, str] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    for number, raw in enumerate(lines, start=1):
        if not raw.removeprefix(codecs.BOM_UTF8).strip():
            continue
        try:
            found.append(own_prompt(parse_line(number, raw), tokenizer, reading))
        except LineRefused as refused:
            problems[number] = str(refused)
    if not found:
        told = "; ".join(f"line {n}: {why}" for n, why in list(problems.items())[:TOLD])
        more = f"; and {len(problems) - TOLD} more" if len(problems) > TOLD else ""
        raise UserError(f"{path} has no prompt that can be used ({told or 'it is empty'}{more})")
    return found, problems


def own_prompt(line: Line, tokenizer: Any, reading: Reading) -> OwnPrompt:
    """A line as a sample.

    Raises:
        LineRefused: the chat template refuses it, or it is too long or too short.
    """
    chat = line.is_chat or reading.chat
    task = GIVEN if line.answers else OWN
    sample = Sample(
        sample_id=sample_id(task, LENGTH, SPLIT, line.number - 1),
        task=task,
        family=task,
        context=line.text,
        question=f"\n\n{line.question}" if line.question else "",
        answers=line.answers,
        target=_target(line, chat),
        query_visible=True,
        metric="f1" if line.answers else "tokens",
        max_new_tokens=_reply(line, tokenizer),
        haystack="own",
        length=LENGTH,
        split=SPLIT,
        index=line.number - 1,
        chat=chat,
        turns=line.turns,
    )
    try:
        context, question, target = prompt_parts(sample, tokenizer)
    except Exception as error:  # templates raise whatever Jinja or their authors chose
        raise LineRefused(f"the model's chat template refuses the messages: {error}") from error
    tokens = len(context) + len(question)
    reply = max(len(target), sample.max_new_tokens) if line.answers else reading.answer_tokens
    if reading.window is not None and tokens + reply > reading.window:
        raise LineRefused(
            f"has {tokens} tokens, and with {reply} for an answer that is more than the model's "
            f"window of {reading.window}"
        )
    if tokens < reading.fewest:
        raise LineRefused(
            f"has {tokens} tokens, and prompts of fewer than {reading.fewest} are not compressed"
        )
    return OwnPrompt(sample, tokens, reply)


def window_of(model: str) -> int | None:
    """Tokens that a model's configuration allows for; None where it does not say.

    Raises:
        UserError: there is no such model.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model).get_text_config()
    except (OSError, ValueError) as error:
        raise UserError(f"the model cannot be read: {error}") from error
    found = getattr(config, "max_position_embeddings", None)
    return int(found) if found else None


def _target(line: Line, chat: bool) -> str:
    if not line.answers:
        return ""
    before = line.question or line.text
    return line.answers[0] if chat or before[-1].isspace() else f" {line.answers[0]}"


def _reply(line: Line, tokenizer: Any) -> int:
    """Room for a third more than the longest answer."""
    if not line.answers:
        return 0
    longest = max(len(tokenizer.encode(one, add_special_tokens=False)) for one in line.answers)
    return max(SHORTEST_REPLY, math.ceil(1.3 * longest) + 4)
