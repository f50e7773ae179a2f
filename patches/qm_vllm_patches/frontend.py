"""The side of an engine that talks to users: each output of a request carries its report.

vLLM hands a connector's ``kv_transfer_params`` on with the output that ends a request. An answer
that ends at a stop string is ended by the frontend, before the engine has any last output, and
most of its endpoints drop what they do not expect. So the report comes with a request's first
output, too (:mod:`.true_figures`), stays with the request's state in the frontend, and whoever
serves an HTTP request can watch for the states that belong to it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

REPORT = "_qm_vllm_report"
"""Attribute of a request's state in the frontend."""

_watched: ContextVar[list[Any] | None] = ContextVar("qm_vllm_watched", default=None)


class Watch:
    """The engine's requests that one HTTP request has led to."""

    def __init__(self) -> None:
        self.states: list[Any] = []

    def reports(self) -> list[dict[str, Any] | None]:
        """The report of each prompt, in the order of the request; None: it has none yet.

        Parallel samples of one prompt (``n``) share a report.
        """
        by_prompt: dict[str, dict[str, Any] | None] = {}
        for state in self.states:
            prompt = str(state.external_req_id)
            by_prompt[prompt] = by_prompt.get(prompt) or getattr(state, REPORT, None)
        return [by_prompt[prompt] for prompt in sorted(by_prompt, key=_place)]


def _place(external_id: str) -> int:
    """Of a prompt in its request: vLLM numbers the prompts of a list at the end of their ids."""
    number = external_id.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


@contextmanager
def watching() -> Iterator[Watch]:
    """Note the requests that are added to an engine in this context and in tasks begun in it."""
    watch = Watch()
    token = _watched.set(watch.states)
    try:
        yield watch
    finally:
        _watched.reset(token)


def carry_reports(key: str, refused: str) -> None:
    """Let this process's frontends keep and repeat reports; a second call does nothing.

    Args:
        key: of the report in ``kv_transfer_params``.
        refused: status in the report of a request that could not be served: who waits for it gets
            vLLM's error of a bad request, with the report's reason.
    """
    try:
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.output_processor import OutputProcessor
    except ImportError:  # the engine's own check says so, with a sentence
        return
    if hasattr(OutputProcessor.process_outputs, "__wrapped__"):
        return
    process, add = OutputProcessor.process_outputs, OutputProcessor.add_request

    @functools.wraps(process)
    def process_outputs(self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        for output in engine_core_outputs:
            state = self.request_states.get(output.request_id)
            if _carry(state, output, key) == refused and state.queue:
                state.queue.put(VLLMValidationError(getattr(state, REPORT)["reason"]))
        return process(self, engine_core_outputs, *args, **kwargs)

    @functools.wraps(add)
    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        add(self, request, *args, **kwargs)
        watched, state = _watched.get(), self.request_states.get(request.request_id)
        if watched is not None and state is not None:
            watched.append(state)

    OutputProcessor.process_outputs = process_outputs  # type: ignore[method-assign]
    OutputProcessor.add_request = add_request  # type: ignore[method-assign]


def _carry(state: Any, output: Any, key: str) -> str | None:
    """Keep a report that comes, or repeat one that came. Returns the status of a new one."""
    told = output.kv_transfer_params
    if state is None:
        return None
    if told is not None and key in told:
        setattr(state, REPORT, told[key])
        return told[key].get("status")  # type: ignore[no-any-return]
    if told is None and (report := getattr(state, REPORT, None)) is not None:
        output.kv_transfer_params = {key: report}
    return None
