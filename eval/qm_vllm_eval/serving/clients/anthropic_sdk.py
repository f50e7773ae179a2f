"""Anthropic's client on ``/v1/messages``: messages, streams, many at once, tools, errors."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic

from qm_vllm_eval.serving.clients.checks import (
    MODEL,
    QUARTER,
    SCHEMA,
    TOOL,
    WRONG,
    arguments,
    quarter,
    refused,
    run,
    told,
)


class Checks:
    """One server seen through the client."""

    def __init__(self, address: str, text: str) -> None:
        self.address = address
        client: Any = anthropic.Anthropic(base_url=address, api_key="none", max_retries=0)
        self.messages = client.messages
        self.common: dict[str, Any] = {
            "model": MODEL, "max_tokens": 8, "system": "Be short.", "extra_body": QUARTER,
            "messages": [{"role": "user", "content": text}],
        }

    def message(self) -> str:
        return quarter(told(self.messages.create(**self.common)))

    def stream(self) -> str:
        with self.messages.create(**self.common, stream=True) as events:
            (report,) = [told(event) for event in events if told(event)]
        return quarter(report)

    def many_at_once(self) -> str:
        async def all_of_them() -> list[Any]:
            async with anthropic.AsyncAnthropic(
                base_url=self.address, api_key="none", max_retries=0
            ) as client:
                messages: Any = client.messages
                return await asyncio.gather(*(messages.create(**self.common) for _ in range(3)))

        return ", ".join(quarter(told(answer)) for answer in asyncio.run(all_of_them()))

    def tools(self) -> str:
        tool = {"name": TOOL["name"], "description": TOOL["description"], "input_schema": SCHEMA}
        answer = self.messages.create(
            **self.common | {"max_tokens": 80}, tools=[tool],
            tool_choice={"type": "tool", "name": TOOL["name"]},
        )
        (call,) = [block for block in answer.content if block.type == "tool_use"]
        assert set(call.input) == {"word"}
        return quarter(told(answer))

    def errors(self) -> str:
        wrong = self.common | {"extra_body": WRONG}
        return refused(lambda: self.messages.create(**wrong), anthropic.BadRequestError)


if __name__ == "__main__":
    checks = Checks(*arguments())
    run("anthropic", {
        "message": checks.message, "stream": checks.stream, "async": checks.many_at_once,
        "tools": checks.tools, "error": checks.errors,
    })
