"""LiteLLM as a client of an OpenAI-compatible server, in both of its ways to name one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import litellm

from qm_vllm_eval.serving.clients.checks import (
    MODEL,
    OPENAI_FORM,
    OPENAI_TOOL,
    QUARTER,
    WRONG,
    arguments,
    called,
    quarter,
    refused,
    run,
    streamed,
    told,
)

WAYS = {"openai": True, "hosted_vllm": False}
"""LiteLLM's names for such servers; whether unknown fields of a stream's events come through."""


class Checks:
    """One server seen through one of LiteLLM's providers."""

    def __init__(self, way: str, address: str, text: str) -> None:
        self.passes_on = WAYS[way]
        self.common: dict[str, Any] = {
            "model": f"{way}/{MODEL}", "api_base": f"{address}/v1", "api_key": "none",
            "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0,
            "extra_body": QUARTER, "num_retries": 0,
        }

    def chat(self) -> str:
        return quarter(told(litellm.completion(**self.common)))

    def stream(self) -> str:
        whole = litellm.completion(**self.common)
        parts = list(litellm.completion(**self.common, stream=True))
        text = streamed(parts)
        assert text == whole.choices[0].message.content, (text, whole)
        report = next((told(one) for one in parts if told(one)), None)
        if self.passes_on:
            return quarter(report)
        assert report is None, "this provider passes reports on now: put that into WAYS"
        return "no report: LiteLLM drops it from streams of this provider"

    def many_at_once(self) -> str:
        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(litellm.acompletion(**self.common) for _ in range(3)))

        return ", ".join(quarter(told(answer)) for answer in asyncio.run(all_of_them()))

    def tools(self) -> str:
        return called(litellm.completion(**self.common | {"max_tokens": 80}, **OPENAI_TOOL))

    def schema(self) -> str:
        common = self.common | {"max_tokens": 80}
        answer = litellm.completion(**common, response_format=OPENAI_FORM)
        assert set(json.loads(answer.choices[0].message.content)) == {"word"}, answer
        return quarter(told(answer))

    def errors(self) -> str:
        wrong = self.common | {"extra_body": WRONG}
        return refused(lambda: litellm.completion(**wrong), litellm.BadRequestError)


def checks_of(way: str) -> dict[str, Callable[[], str]]:
    """The checks of one provider."""
    checks = Checks(way, *arguments())
    return {
        "chat": checks.chat, "stream": checks.stream, "async": checks.many_at_once,
        "tools": checks.tools, "schema": checks.schema, "error": checks.errors,
    }


if __name__ == "__main__":
    litellm.suppress_debug_info = True
    for each in WAYS:
        run(f"litellm {each}", checks_of(each))
