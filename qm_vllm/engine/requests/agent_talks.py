"""Conversations of an agent, rendered with a chat template to see what begins their turns.

Templates differ in what they take: arguments of a call as a mapping or as JSON, a call with or
without text beside it, ids of nine letters and digits, one call at a time. So there are several
forms of one conversation, and a template need only understand one of them. Each form is rendered
with other names, ids and beginnings of messages, because tokens at the edge of a mark may merge
with what follows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

Talk = tuple[tuple[str, str], ...]
"""Role and word of each message; "call" is an assistant's message that calls tools."""

SYSTEM = ("system", "QMALPHA")
QUESTION, CALL, RESULT = ("user", "QMBETA"), ("call", "QMCALL"), ("tool", "QMRESULT")
ANSWER, AGAIN = ("assistant", "QMANSWER"), ("user", "QMDELTA")
TALKS: tuple[Talk, ...] = (
    (QUESTION, CALL, RESULT, ANSWER, AGAIN),
    (QUESTION, CALL, RESULT, ("tool", "QMSECOND"), ANSWER, AGAIN),
    (QUESTION, CALL, RESULT, AGAIN),
)
"""The first says what a tool's result looks like; a template may refuse the others."""

BEGINNINGS = ("", "\n\n", "<", "[", '{"', '"', "7 ", "> ", "# ", "- ")
"""What messages begin with."""
CALLS: tuple[tuple[str, tuple[str, str], dict[str, Any]], ...] = (
    ("qmlook", ("QmCall001", "QmCall002"), {}),
    ("seek_it", ("x7bKd9Qz2", "y8cLe0Rz3"), {"top": 7}),
)
"""Names of a tool, ids of its calls, and arguments behind the word."""
SCHEMA = "QMSCHEMA"
TOOLS = [{"type": "function", "function": {
    "name": CALLS[0][0], "description": SCHEMA, "parameters": {
        "type": "object", "properties": {"query": {"type": "string", "description": "words"}},
    },
}}]


@dataclass(frozen=True)
class Sample:
    """A conversation that a template has rendered.

    Attributes:
        text: all of it.
        roles: of its turns; results of tools that follow each other are one turn.
        steps: role and word of each message, and the text between the word before and this one.
    """

    text: str
    roles: tuple[str, ...]
    steps: tuple[tuple[str, str, str], ...]


def forms(tokenizer: Any, talk: Talk, *, tools: bool) -> Iterator[list[Sample]]:
    """The forms of one conversation that the template takes, in all beginnings of messages.

    Args:
        tools: with schemas, for which a tokenizer may have a template of its own.
    """
    options = {"tools": TOOLS} if tools else {}
    for content, as_json in product((None, "", CALL[1]), (False, True)):
        try:
            yield [
                _sample(
                    tokenizer, talk,
                    _messages(talk, beginning, CALLS[i % 2], content, as_json), **options,
                )
                for i, beginning in enumerate(BEGINNINGS)
            ]
        except Exception:  # a template may refuse a form in any way
            continue


def schemas(tokenizer: Any) -> Iterator[tuple[str, Sample]]:
    """What stands before the schemas of tools, up to the word before; nothing if refused."""
    for talk in ((QUESTION,), (QUESTION, ANSWER, AGAIN), (SYSTEM, QUESTION)):
        messages = [{"role": role, "content": word} for role, word in talk]
        try:
            sample = _sample(tokenizer, talk, messages, tools=TOOLS)
        except Exception:
            continue
        for _, _, before in sample.steps:
            if SCHEMA in before:
                yield before.partition(SCHEMA)[0], sample


def lead_of(before: str) -> str:
    """The template's own words in front of schemas: what stands before the brace that holds them.

    Args:
        before: as :func:`schemas` gives it; it ends inside a schema.
    """
    inside = 0
    start = len(before)
    for place in range(len(before) - 1, -1, -1):
        inside += {"}": 1, "{": -1}.get(before[place], 0)
        if inside < 0:  # nothing behind it closes it
            start, inside = place, 0
    return before[:start].rstrip("[ \n")


def _messages(
    talk: Talk, beginning: str, call: tuple[str, Sequence[str], dict[str, Any]],
    content: str | None, as_json: bool,
) -> list[dict[str, Any]]:
    name, ids, more = call
    left = iter(ids)
    messages: list[dict[str, Any]] = []
    for role, word in talk:
        message: dict[str, Any] = {"role": role, "content": beginning + word}
        if role == "call":
            arguments = {"query": word, **more}
            function = {"name": name, "arguments": json.dumps(arguments) if as_json else arguments}
            results = sum(other == "tool" for other, _ in talk)
            message = {"role": "assistant", "content": content, "tool_calls": [
                {"id": one, "type": "function", "function": function} for one in ids[:results]
            ]}
        elif role == "tool":
            message |= {"name": name, "tool_call_id": next(left)}
        messages.append(message)
    return messages


def _sample(
    tokenizer: Any, talk: Talk, messages: list[dict[str, Any]], **options: Any
) -> Sample:
    """Render, and cut the text at the words.

    Raises:
        ValueError: the template does not show all messages, in order.
    """
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=False, **options
    )
    steps, roles, at, last = [], list[str](), 0, None
    for role, word in talk:
        start = text.index(word, at)
        before = text[at:start]
        # Calls of several tools, and text beside a call, show its word more than once.
        steps.append((role, word, before.rpartition(last)[2] if last else before))
        at, last = start + len(word), word
        turn = "assistant" if role == "call" else role
        if turn != "tool" or roles[-1:] != ["tool"]:
            roles.append(turn)
    return Sample(text, tuple(roles), tuple(steps))
