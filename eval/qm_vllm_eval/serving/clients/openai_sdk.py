"""OpenAI's client: chats, streams, many at once, tools, schemas, completions, responses, errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai

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


class Checks:
    """One server seen through the client."""

    def __init__(self, address: str, text: str) -> None:
        self.address, self.text = f"{address}/v1", text
        self.client: Any = openai.OpenAI(base_url=self.address, api_key="none", max_retries=0)
        self.chats: Any = self.client.chat.completions
        self.common: dict[str, Any] = {
            "model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 8,
            "temperature": 0, "extra_body": QUARTER,
        }

    def chat(self) -> str:
        answer = self.chats.create(**self.common)
        said = quarter(told(answer))
        assert answer.usage.prompt_tokens == told(answer)["source_tokens"]  # type: ignore[index]
        return said

    def stream(self) -> str:
        whole = self.chats.create(**self.common)
        parts = list(self.chats.create(**self.common, stream=True))
        text = streamed(parts)
        assert text == whole.choices[0].message.content, (text, whole)
        (report,) = [told(one) for one in parts if told(one)]
        return quarter(report)

    def many_at_once(self) -> str:
        """Each has a ratio of its own, and finds it in its report."""

        async def ask(client: Any, ratio: float) -> float:
            common = self.common | {"extra_body": {"vllm_xargs": {"qm_ratio": ratio}}}
            stream = await client.chat.completions.create(**common, stream=True)
            (report,) = [told(one) async for one in stream if told(one)]
            assert report is not None
            return float(report["ratio"])

        async def all_of_them() -> list[float]:
            async with openai.AsyncOpenAI(base_url=self.address, api_key="none") as client:
                return await asyncio.gather(*(ask(client, ratio) for ratio in wanted))

        wanted = (0.2, 0.4, 0.6)
        seen = asyncio.run(all_of_them())
        assert all(want - 0.1 < got <= want for want, got in zip(wanted, seen, strict=True)), seen
        return ", ".join(f"{ratio:.2f}" for ratio in seen)

    def tools(self) -> str:
        return called(self.chats.create(**self.common | {"max_tokens": 80}, **OPENAI_TOOL))

    def schema(self) -> str:
        common = self.common | {"max_tokens": 80}
        parts = list(self.chats.create(**common, response_format=OPENAI_FORM, stream=True))
        text = streamed(parts)
        assert set(json.loads(text)) == {"word"}, text
        return quarter(next(told(one) for one in parts if told(one)))

    def completions(self) -> str:
        answer = self.client.completions.create(
            model=MODEL, prompt=[self.text, self.text + " More."], max_tokens=4, temperature=0,
            extra_body=QUARTER,
        )
        reports = answer.model_extra["kv_transfer_params"]["quickmerge_prompts"]
        return " and ".join(map(quarter, reports))

    def responses(self) -> str:
        answer = self.client.responses.create(
            model=MODEL, input=self.text, max_output_tokens=8, temperature=0, extra_body=QUARTER
        )
        return quarter(told(answer))

    def errors(self) -> str:
        wrong = self.common | {"extra_body": WRONG}
        return refused(lambda: self.chats.create(**wrong), openai.BadRequestError)


if __name__ == "__main__":
    checks = Checks(*arguments())
    run("openai", {
        "chat": checks.chat, "stream": checks.stream, "async": checks.many_at_once,
        "tools": checks.tools, "schema": checks.schema, "completions": checks.completions,
        "responses": checks.responses, "error": checks.errors,
    })
