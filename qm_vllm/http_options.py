"""ASGI middleware for the OpenAI-compatible server: bad options of a request are HTTP 400.

vLLM hands ``vllm_xargs`` to the engine unread. Without this class a request with a bad option is
served uncompressed, and its report says why; with it, the client learns at once. ``qm-vllm serve``
switches it on (vLLM's ``--middleware``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from qm_vllm.config import ConfigError, QuickMergeConfig, parse_request_args

CONFIG_VARIABLE = "QM_VLLM_SERVER_CONFIG"
"""Environment variable with the server's configuration as JSON; the defaults if it is not set."""
MARKS = (b"qm_", b"quickmerge")
"""A body without any of these has no options of ours and is not parsed."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class RefuseBadOptions:
    """Answers 400 with the option's name and what is allowed; everything else passes untouched."""

    def __init__(self, app: Callable[[Any, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self.base = QuickMergeConfig.from_dict(json.loads(os.environ.get(CONFIG_VARIABLE, "{}")))

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        messages: list[Message] = [await receive()]
        while messages[-1]["type"] == "http.request" and messages[-1].get("more_body"):
            messages.append(await receive())
        problem = self.problem(b"".join(message.get("body", b"") for message in messages))
        if problem is not None:
            await _refuse(send, problem)
            return

        async def again() -> Message:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, again, send)

    def problem(self, body: bytes) -> str | None:
        """What is wrong with the options in a request's JSON body; None if nothing is."""
        if not any(mark in body for mark in MARKS):
            return None
        try:
            content = json.loads(body)
        except ValueError:
            return None  # vLLM says so in its own words
        if not isinstance(content, dict):
            return None
        extra = content.get("vllm_xargs")
        given = dict(extra) if isinstance(extra, dict) else {}
        given["kv_transfer_params"] = content.get("kv_transfer_params")
        try:
            self.base.override(parse_request_args(given))
        except ConfigError as error:
            return str(error)
        return None


async def _refuse(send: Send, problem: str) -> None:
    error = {
        "message": f"quickmerge: {problem}", "type": "BadRequestError", "param": "vllm_xargs",
        "code": 400,
    }
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
