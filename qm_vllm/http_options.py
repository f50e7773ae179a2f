"""ASGI middleware for the OpenAI-compatible server: bad options of a request are HTTP 400.

vLLM hands ``vllm_xargs`` to the engine unread. Without this class a request with a bad option is
served uncompressed, and its report says why; with it, the client learns at once. ``qm-vllm serve``
and the flags of :func:`qm_vllm.engine_cli_args` switch it on (vLLM's ``--middleware``).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from qm_vllm.client_rules import ClientRules
from qm_vllm.config import ConfigError
from qm_vllm.reports import REPORT_KEY
from qm_vllm.request_options import PREFIX, check_ranges, parse_request_args
from qm_vllm_patches.server import served_engine

MARKS = re.compile(rb"qm_|quickmerge|\\u00[2-7]|\0")
"""A body without any of these has no options of ours and is not parsed. The last two are other
ways to write our names: escapes of ASCII characters, and UTF-16 or UTF-32."""

PROMPT_FIELDS = (
    "model", "prompt", "messages", "add_special_tokens", "add_generation_prompt",
    "continue_final_message", "chat_template", "chat_template_kwargs", "tools",
)
"""What decides the tokens of a request: the fields that ``/tokenize`` gets of it."""

MESSAGES = "/v1/messages"
COUNTS = {MESSAGES: ("/v1/messages/count_tokens", "input_tokens")}
"""Where the server itself counts an endpoint's prompt, and the field of the answer; else
``/tokenize`` does."""
MESSAGES_FIELDS = ("model", "messages", "system", "tools", "tool_choice", "thinking")

NO_PLACE = ("extra_body", "chat_template_kwargs")
"""Fields in which clients put our options by mistake: vLLM would pass over them in silence."""

MOST_NAME = 64
"""Characters of an unknown field's name that an error repeats."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class RefuseBadOptions:
    """Answers 400 with the option's name and what is allowed; everything else passes untouched.

    What is allowed depends on the engine's own configuration and model, which are read from the
    server's application at the first request with options. Where a request has
    ``protect_ranges``, the server's own ``/tokenize`` is asked how long the prompt is, so that
    ranges outside it are refused too.
    """

    def __init__(self, app: Callable[[Any, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self._rules: ClientRules | None = None

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        messages: list[Message] = [await receive()]
        while messages[-1]["type"] == "http.request" and messages[-1].get("more_body"):
            messages.append(await receive())
        body = b"".join(message.get("body", b"") for message in messages)
        problem = await self._problem(scope, body)
        if problem is not None:
            await _refuse(send, problem, scope.get("path", ""))
            return

        async def again() -> Message:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, again, send)

    async def _problem(self, scope: Any, body: bytes) -> str | None:
        """What is wrong with the options in a request's JSON body; None if nothing is."""
        if not MARKS.search(body):
            return None
        content = _content(body)
        try:
            _refuse_misplaced(content)
            for given in _options(content):
                config = self._rules_of(scope).request(given)
                if "protect_ranges" in given:
                    cut_to = _cut_to(scope, content)
                    async for length in self._lengths(scope, content):
                        length = cut_to if length is None else length
                        if length is not None:
                            check_ranges(config.protect_ranges, length, cut_to)
        except ConfigError as error:
            return str(error)
        return None

    def _rules_of(self, scope: Any) -> ClientRules:
        """The rules of the engine behind a request; those of the defaults where none is seen."""
        if self._rules is None:
            engine = served_engine(scope, REPORT_KEY)
            if engine is None:
                return ClientRules.of({}, None)
            self._rules = ClientRules.of(engine.options, engine.text_config)
        return self._rules

    async def _lengths(
        self, scope: Any, content: dict[str, Any]
    ) -> AsyncIterator[int | None]:
        """Tokens of each prompt or of the conversation, uncut; None if the server does not say."""
        if "input" in content and "messages" not in content:
            content = _conversation(content)
        prompts = content.get("prompt")
        if not (isinstance(prompts, list) and prompts and isinstance(prompts[0], (str, list))):
            prompts = [prompts]
        for prompt in prompts:
            if isinstance(prompt, list):
                yield len(prompt)
                continue
            yield await self._count(scope, content | {"prompt": prompt})

    async def _count(self, scope: Any, content: dict[str, Any]) -> int | None:
        """Tokens of one prompt or conversation; None if the server does not say."""
        path, field = COUNTS.get(scope.get("path", ""), ("/tokenize", "count"))
        fields = PROMPT_FIELDS if path == "/tokenize" else MESSAGES_FIELDS
        wanted = {name: content[name] for name in fields if content.get(name) is not None}
        body = json.dumps(wanted).encode()
        own = (b"content-length", b"content-type", b"transfer-encoding")
        headers = [pair for pair in scope["headers"] if pair[0].lower() not in own]
        headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        inner = {**scope, "path": path, "raw_path": path.encode(), "headers": headers,
                 "query_string": b"", "state": dict(scope.get("state") or {})}
        told: list[Message] = []
        unread = [body]

        async def receive() -> Message:
            if not unread:  # the server waits here for the client to hang up
                await asyncio.Event().wait()
            return {"type": "http.request", "body": unread.pop(), "more_body": False}

        async def send(message: Message) -> None:
            told.append(message)

        await self.app(inner, receive, send)
        if not told or told[0].get("status") != 200:
            return None
        answer = json.loads(b"".join(message.get("body", b"") for message in told))
        return int(answer[field])


def _content(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; empty for anything else, which vLLM answers in its own words."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _cut_to(scope: Any, content: dict[str, Any]) -> int | None:
    """What vLLM leaves of a prompt at most; None where the request does not say a number.

    A longer prompt than the model takes is not counted by ``/tokenize``, but may be cut. With -1
    the model's own length decides, which is not known here: the engine checks the ranges then.
    """
    if "completions" not in scope.get("path", ""):
        return None
    most = content.get("truncate_prompt_tokens")
    return most if type(most) is int and most >= 0 else None


def _conversation(content: dict[str, Any]) -> dict[str, Any]:
    """A request for ``/v1/responses`` as one for a chat: ``instructions`` and ``input``."""
    given, told = content["input"], content.get("instructions")
    messages = [{"role": "system", "content": told}] if isinstance(told, str) else []
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    elif isinstance(given, list):
        messages += [one for one in given if isinstance(one, dict) and "role" in one]
    return {**content, "messages": messages}


def _refuse_misplaced(content: dict[str, Any]) -> None:
    """Raise ConfigError where one of our options stands where no endpoint reads it."""
    ours = [name for name in content if name.startswith(PREFIX) or name == REPORT_KEY]
    found = [(name, "at the top level") for name in ours]
    for place in NO_PLACE:
        inside = content.get(place)
        if isinstance(inside, dict):
            inner = inside.get("vllm_xargs")
            names = [*inside, *(inner if isinstance(inner, dict) else ())]
            found += [(name, f"inside {place}") for name in names if name.startswith(PREFIX)]
    for whole, where in found:
        name = whole[:MOST_NAME]
        if name == REPORT_KEY:
            raise ConfigError(
                f'{name} stands at the top level of the request; send "kv_transfer_params": '
                f'{{"{name}": {{...}}}}'
            )
        raise ConfigError(
            f'{name} stands {where} of the request, where nobody '
            f'reads it; send "vllm_xargs": {{"{name}": ...}} at the top level (with the OpenAI '
            f'client: extra_body={{"vllm_xargs": {{"{name}": ...}}}})'
        )


def _options(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Our options of a request, unchecked, from each place that one of vLLM's endpoints reads.

    Raises:
        ConfigError: one of them is not what it should be at all.
    """
    sampling = content.get("sampling_params")  # the endpoint that takes token ids
    found = []
    for extra in (
        content.get("vllm_xargs"),
        sampling.get("extra_args") if isinstance(sampling, dict) else None,
    ):
        given = dict(extra) if isinstance(extra, dict) else {}
        if content.get("kv_transfer_params") is not None:
            given["kv_transfer_params"] = content["kv_transfer_params"]
        found.append(parse_request_args(given))
    return [given for given in found if given]


async def _refuse(send: Send, problem: str, path: str) -> None:
    error: dict[str, Any] = {
        "message": f"quickmerge: {problem}", "type": "BadRequestError", "param": "vllm_xargs",
        "code": 400,
    }
    answer: dict[str, Any] = {"error": error}
    if path == MESSAGES:  # as Anthropic's clients expect it
        answer = {"type": "error", "error": error | {"type": "invalid_request_error"}}
    body = json.dumps(answer).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
