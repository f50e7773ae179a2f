"""ASGI middleware for the OpenAI-compatible server: no answer leaves without its report.

vLLM puts ``kv_transfer_params`` into whole answers. It leaves them out of streams, and of a list
of prompts it tells the first one's. Here they are added to what vLLM sends in any case: of a stream
to the event that ends an answer, as one more field, which clients that do not know it skip. An
event of its own would break clients that read ``choices[0]`` of every event.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from qm_vllm.http_options import Message, Receive, Send
from qm_vllm.reports import REPORT_KEY
from qm_vllm_patches.frontend import Watch, watching

FIELD = "kv_transfer_params"
ALL_KEY = f"{REPORT_KEY}_prompts"
"""Beside the first prompt's report: a list with the report of each, where there are several."""

ENDS = (b'"finish_reason":"', b'"message_delta"', b'"message-end"')
"""One of these is in the event that ends an answer (completions and chats; ``/v1/messages``; the
``/v2/chat`` of Cohere's clients). ``/v1/responses`` sends the whole answer at its end."""


class AddReports:
    """Adds reports to the answers of requests that an engine has served."""

    def __init__(self, app: Callable[[Any, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        with watching() as watch:
            await self.app(scope, receive, _Answer(send, watch))


class _Answer:
    """One answer on its way out."""

    def __init__(self, send: Send, watch: Watch) -> None:
        self.send, self.watch = send, watch
        self.start: Message | None = None
        self.streams = False
        self.whole = b""
        self.rest = b""

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            content = _content_type(message)
            self.streams = content == b"text/event-stream"
            if content == b"application/json":
                self.start = message  # its length may change
                return
        elif kind == "http.response.body" and self.start is not None:
            self.whole += message.get("body", b"")
            if message.get("more_body"):
                return
            body = with_all_reports(self.whole, self.watch.reports())
            _set_length(self.start, len(body))
            await self.send(self.start)
            self.start = None
            message = {**message, "body": body}
        elif kind == "http.response.body" and self.streams:
            message = {**message, "body": self._events(message)}
        await self.send(message)

    def _events(self, message: Message) -> bytes:
        """The events that are complete, with reports."""
        *events, self.rest = (self.rest + message.get("body", b"")).split(b"\n\n")
        if not message.get("more_body"):
            events, self.rest = [*events, self.rest], b""
        else:
            events.append(b"")
        return b"\n\n".join(
            with_report(event, self.watch) if any(mark in event for mark in ENDS) else event
            for event in events
        )


def with_all_reports(body: bytes, reports: list[dict[str, Any] | None]) -> bytes:
    """A whole answer, with the reports of all its prompts if there are several."""
    if len(reports) < 2 or not any(reports):
        return body
    try:
        content = json.loads(body)
    except ValueError:
        return body
    # Fewer answers than prompts: a beam search, whose steps are prompts of their own.
    if not isinstance(content, dict) or len(content.get("choices") or []) < len(reports):
        return body
    content[FIELD] = {**(content.get(FIELD) or {}), ALL_KEY: reports}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def with_report(event: bytes, watch: Watch) -> bytes:
    """The event that ends an answer, with that prompt's report as one more field of its data."""
    head, mark, data = event.partition(b"data: ")
    try:
        content = json.loads(data)
    except ValueError:
        return event
    if not isinstance(content, dict) or FIELD in content:
        return event
    choices = content.get("choices") or [{}]
    if "choices" in content and not choices[0].get("finish_reason"):
        return event
    reports = watch.reports()
    samples = max(1, len(watch.states) // max(1, len(reports)))
    place = int(choices[0].get("index") or 0) // samples
    report = reports[place] if place < len(reports) else None
    if report is None:
        return event
    field = json.dumps({FIELD: {REPORT_KEY: report}}, separators=(",", ":")).encode()
    return head + mark + data.rstrip()[:-1] + b"," + field[1:]


def _content_type(message: Message) -> bytes:
    for name, value in message.get("headers", []):
        if name.lower() == b"content-type":
            return bytes(value.partition(b";")[0].strip().lower())
    return b""


def _set_length(message: Message, length: int) -> None:
    message["headers"] = [
        (name, b"%d" % length if name.lower() == b"content-length" else value)
        for name, value in message.get("headers", [])
    ]
