"""Sends one request and says what became of it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import aiohttp

from qm_vllm_eval.serving.ask import Ask
from qm_vllm_eval.serving.readings import Said, Stream, whole


@dataclass(frozen=True)
class Answer:
    """What a client saw.

    Attributes:
        status: of HTTP; 0: the connection broke. texts: of each choice, with its calls of
            tools. calls: how many these are. aborted: the client hung up. problem: an error in
            the answer's body.
    """

    status: int
    texts: tuple[str, ...] = ()
    calls: int = 0
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
            return _answer(whole(await got.json()))
        stream = Stream()
        async for line in got.content:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            if problem := stream.add(json.loads(line[6:])):
                return Answer(200, problem=problem)
        return _answer(stream.said())


def _answer(choices: list[Said]) -> Answer:
    return Answer(200, tuple(map(str, choices)), sum(len(one.calls) for one in choices))
