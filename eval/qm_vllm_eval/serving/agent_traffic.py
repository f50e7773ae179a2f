"""What agents ask for: calls of tools with their results in the talk, and answers of a form.

Nothing here ignores the end of the text: behind the end of its form a model would go on freely.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

WORD = {"type": "string", "pattern": "^[a-z]{1,8}$"}
FORMS: tuple[dict[str, Any], ...] = (
    {"word": WORD, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    {"colour": {"enum": ["red", "green", "blue"]}, "sure": {"type": "boolean"}},
    {"rows": {"type": "array", "minItems": 1, "maxItems": 2, "items": {
        "type": "object", "properties": {"word": WORD}, "required": ["word"],
        "additionalProperties": False,
    }}},
)
"""Properties of the schemas, which a random model can fill in a few tokens."""


def schema(properties: dict[str, Any]) -> dict[str, Any]:
    """Of an object that has all of them and no others."""
    return {
        "type": "object", "properties": properties, "required": list(properties),
        "additionalProperties": False,
    }


TOOLS = [
    {"type": "function", "function": {
        "name": name, "description": says, "parameters": schema(properties),
        # Else vLLM takes any JSON for its arguments.
        "strict": True,
    }}
    for name, says, properties in (
        ("look_up", "Looks a word up in the notes of the team.", {"word": WORD}),
        ("list_files", "Lists the newest files of a folder.", FORMS[0]),
    )
]
CHOICES: tuple[tuple[str, Any], ...] = (
    ("none", "none"), ("auto", "auto"), ("required", "required"),
    ("named", {"type": "function", "function": {"name": "look_up"}}),
)


def tools(pick: random.Random, prose: Callable[[int], str]) -> tuple[str, dict[str, Any]]:
    """The kind and the body of a chat with tools.

    Args:
        prose: a text of at most so many words.
    """
    name, choice = pick.choice(CHOICES)
    body: dict[str, Any] = {
        "messages": talk(pick, prose), "tools": TOOLS, "tool_choice": choice,
        "max_tokens": pick.randint(12, 60),  # some calls are cut
    }
    if name != "none" and pick.random() < 0.5:
        body["parallel_tool_calls"] = False
    return f"tools {name}", body


def talk(pick: random.Random, prose: Callable[[int], str]) -> list[dict[str, Any]]:
    """A task, rounds of calls with their results, and either a next question or none."""
    messages: list[dict[str, Any]] = []
    if pick.random() < 0.5:
        messages.append({"role": "system", "content": prose(40)})
    messages.append({"role": "user", "content": prose(200)})
    for turn in range(pick.randint(0, 2)):
        ids = [f"call{turn}{i:05}" for i in range(pick.randint(1, 2))]
        said = pick.choice([None, "", prose(40)])
        messages.append({"role": "assistant", "content": said, "tool_calls": [
            {"id": one, "type": "function", "function": {
                "name": "look_up", "arguments": json.dumps({"word": prose(20)}),
            }} for one in ids
        ]})
        messages += [
            {"role": "tool", "tool_call_id": one, "content": prose(250)} for one in ids
        ]
        if pick.random() < 0.4:
            messages.append({"role": "assistant", "content": prose(40)})
            messages.append({"role": "user", "content": prose(60)})
    return messages


def form(pick: random.Random) -> dict[str, Any]:
    """What a chat or a completion says of the form of its answer, and of its length."""
    given: dict[str, Any] = pick.choice([
        *({"response_format": {"type": "json_schema", "json_schema": {
            "name": "form", "schema": schema(one)}}} for one in FORMS),
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"choice": ["yes", "no", "not to be said"]}},
        {"structured_outputs": {"regex": "[a-f]{3,9}-[0-9]{2}"}},
    ])
    return given | {"max_tokens": pick.randint(4, 40)}  # some answers are cut


def text_form(pick: random.Random) -> dict[str, Any]:
    """The same for ``/v1/responses``, without the length."""
    return {"text": {"format": {
        "type": "json_schema", "name": "form", "schema": schema(pick.choice(FORMS)),
    }}}
