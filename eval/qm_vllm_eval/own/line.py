"""One line of a file of prompts: what is asked of the model, and what is right if that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qm_vllm import json_lines
from qm_vllm.texts import half_pair

LAST = "the last message must be the user's: the model's answer to it is what is measured"


class LineRefused(Exception):
    """A line that cannot be used; the message says why."""


@dataclass(frozen=True)
class Line:
    """A prompt of the file.

    Attributes:
        number: of the line, from 1.
        turns: (role, text) of the messages before the last one.
        text: the prompt, or the last message.
        question: asked behind it; "": nothing.
        answers: right ones; empty: the model's own answer to the full prompt is the reference.
        is_chat: it came as messages.
    """

    number: int
    turns: tuple[tuple[str, str], ...]
    text: str
    question: str
    answers: tuple[str, ...]
    is_chat: bool


def parse_line(number: int, raw: bytes | str) -> Line:
    """Read one line. Fields of other names are left alone; null is as good as absent.

    Raises:
        LineRefused: it is no JSON object, or its fields are not what they have to be.
    """
    try:
        value = json_lines.parse(raw)
    except ValueError as error:
        raise LineRefused(f"not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise LineRefused('not a JSON object; write {"prompt": ...} or {"messages": [...]}')
    prompt, messages = value.get("prompt"), value.get("messages")
    if (prompt is None) == (messages is None):
        raise LineRefused('needs either "prompt" or "messages"')
    turns = _turns(messages) if messages is not None else (("user", _text(prompt, "prompt")),)
    question = value.get("question")
    return Line(
        number=number,
        turns=turns[:-1],
        text=turns[-1][1],
        question="" if question is None else _text(question, "question").strip(),
        answers=_answers(value.get("answer")),
        is_chat=messages is not None,
    )


def _turns(messages: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(messages, list) or not messages:
        raise LineRefused('"messages" must be a list that is not empty')
    turns = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise LineRefused('each message needs a "role" and a "content"')
        if message.get("tool_calls"):
            raise LineRefused("a message with tool calls cannot be measured here yet")
        turns.append((message["role"], _text(_content(message.get("content")), "content")))
    if turns[-1][0] != "user":
        raise LineRefused(LAST)
    return tuple(turns)


def _content(content: Any) -> Any:
    """Text of a message's content; parts of text are joined, as chat templates do it."""
    if not isinstance(content, list):
        return content
    if any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
        raise LineRefused("a content of several parts must be texts alone")
    return "\n".join(_text(part.get("text"), "text") for part in content)


def _answers(answer: Any) -> tuple[str, ...]:
    if answer is None:
        return ()
    given = [answer] if isinstance(answer, str) else answer
    if not isinstance(given, list):
        raise LineRefused('"answer" must be a text or a list of texts')
    if not given:
        raise LineRefused('"answer" is empty; leave it out to measure against the model\'s own')
    return tuple(_text(one, "answer").strip() for one in given)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        hint = "; leave it out to measure against the model's own" if name == "answer" else ""
        raise LineRefused(f'"{name}" must be a text that is not empty{hint}')
    half = half_pair(value)
    if half:
        raise LineRefused(f'"{name}" holds {half}, which is no text; remove or replace it')
    return value
