"""What an answer says, in one piece or as a stream, at each endpoint that generates."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Said:
    """One choice: its text, and name and arguments of each call of a tool by index.

    Ids of calls are random, so they are no part of what is compared.
    """

    content: str = ""
    calls: dict[int, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.content + "".join(
            f"\n{name}({arguments})" for _, (name, arguments) in sorted(self.calls.items())
        )

    def add(self, content: str | None, calls: list[dict[str, Any]] | None = None) -> None:
        """A piece of it, with calls or pieces of them as chats in OpenAI's form have them."""
        self.content += content or ""
        for place, one in enumerate(calls or []):
            call = self.calls.setdefault(one.get("index", place), ["", ""])
            function = one.get("function") or {}
            call[0] += function.get("name") or ""
            call[1] += function.get("arguments") or ""


def whole(answer: dict[str, Any]) -> list[Said]:
    """The choices of an answer in one piece."""
    if "choices" in answer:
        return _choices(answer, {})
    said = Said()
    # /v1/messages has its blocks in "content", /v1/responses in the messages of its "output".
    blocks = answer["content"] if "content" in answer else [
        block for item in answer["output"] for block in item.get("content") or [item]
    ]
    for block in blocks:
        said.add(block.get("text"))
        if "name" in block:
            arguments = block.get("arguments") or json.dumps(block.get("input"))
            said.calls[len(said.calls)] = [block["name"], arguments]
    return [said]


class Stream:
    """The choices of a stream, of which :meth:`add` takes one event after the other."""

    def __init__(self) -> None:
        self._found: dict[int, Said] = {}

    def add(self, event: dict[str, Any]) -> str | None:
        """Take an event; gives the error in it, if there is one."""
        kind = event.get("type", "")
        if event.get("error") or kind in ("error", "response.failed"):
            return str(event.get("error") or event)[:300]
        if "choices" in event:
            _choices(event, self._found)
        elif kind == "response.output_text.delta":
            self._found.setdefault(0, Said()).add(event["delta"])
        elif kind == "content_block_delta":
            self._found.setdefault(0, Said()).add(event["delta"].get("text"))
        return None

    def said(self) -> list[Said]:
        """All of them, in order."""
        return [self._found[index] for index in sorted(self._found)]


def _choices(part: dict[str, Any], found: dict[int, Said]) -> list[Said]:
    for choice in part["choices"]:
        inner = choice.get("message") or choice.get("delta") or {}
        said = found.setdefault(choice["index"], Said())
        said.add(inner.get("content") or choice.get("text"), inner.get("tool_calls"))
    return [found[index] for index in sorted(found)]
