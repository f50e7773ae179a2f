"""Sends one request and says what became of it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import aiohttp

from qm_vllm_eval.serving.traffic import Ask


@dataclass(frozen=True)
class Answer:
    """What a client saw.

    Attributes:
        status: of HTTP; 0: the connection broke. texts: of each choice. aborted: the client hung
            up. problem: an error in the answer's body.
    """

    status: int
    texts: tuple[str, ...] = ()
    aborted: bool = False
    problem: str | None = None


async def send(
    session: aiohttp.ClientSession, address: str, ask: Ask, hang_up_s: float | None = None
) -> Answer:
    """The answer, or what happened until the client hung up after so many seconds."""
    try:
        async with asyncio.timeout(hang_up_s):
            return await _send(session, address, ask)
    except TimeoutError:
        return Answer(0, aborted=True)
    except aiohttp.ClientError as error:
        return Answer(0, problem=f"{type(error).__name__}: {error}")


async def _send(session: aiohttp.ClientSession, address: str, ask: Ask) -> Answer:
    async with session.post(address + ask.path, json=ask.body, headers=ask.headers) as got:
        if got.status != 200:
            return Answer(got.status, problem=(await got.text())[:300])
        if not ask.body.get("stream"):
            choices = (await got.json())["choices"]
            return Answer(200, tuple(_text(c) for c in sorted(choices, key=lambda c: c["index"])))
        texts: dict[int, str] = {}
        async for line in got.content:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            part = json.loads(line[6:])
            if "error" in part:
                return Answer(200, problem=str(part["error"])[:300])
            for choice in part["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + _text(choice)
        return Answer(200, tuple(texts[index] for index in sorted(texts)))


def _text(choice: dict[str, Any]) -> str:
    inner = choice.get("message") or choice.get("delta")
    return str(inner.get("content") or "") if inner is not None else str(choice.get("text") or "")
