"""A client's checks, told as lines of JSON. Runs where nothing of the project is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

QUARTER = {"vllm_xargs": {"qm_ratio": 0.25}}
"""The option that the checks send; the server itself keeps more."""
WRONG = {"vllm_xargs": {"qm_ratio": 3}}
SCHEMA = {
    "type": "object", "properties": {"word": {"type": "string", "pattern": "^[a-z]{1,8}$"}},
    "required": ["word"], "additionalProperties": False,
}
TOOL = {"name": "look_up", "description": "Looks a word up.", "parameters": SCHEMA}
OPENAI_TOOL: dict[str, Any] = {
    "tools": [{"type": "function", "function": TOOL}],
    "tool_choice": {"type": "function", "function": {"name": TOOL["name"]}},
}
OPENAI_FORM = {"type": "json_schema", "json_schema": {"name": "word", "schema": SCHEMA}}
"""The tool, which has to be called, and the schema as OpenAI's protocol writes them."""
MODEL = "smol"
"""The name under which the server has its model."""


def arguments() -> tuple[str, str]:
    """The server's address and the document, from the command line."""
    address, file = sys.argv[1:]
    return address, Path(file).read_text(encoding="utf-8")


def told(answer: Any) -> dict[str, Any] | None:
    """The report in an answer, an event or a part of it, wherever a client puts unknown fields."""
    if answer is None:
        return None
    given = answer if isinstance(answer, dict) else (
        getattr(answer, "model_extra", None) or vars(answer)
    )
    field = given.get("kv_transfer_params") or {}
    report: dict[str, Any] | None = field.get("quickmerge")
    return report


def quarter(report: dict[str, Any] | None) -> str:
    """Says what the report says, if the option took effect.

    Raises:
        AssertionError: it did not, or there is no report.
    """
    assert report, "no report arrived"
    assert report["status"] == "compressed", report
    assert 0.15 < report["ratio"] <= 0.25, report
    return f"{report['source_tokens']} -> {report['kept_tokens']} tokens"


def streamed(parts: Iterable[Any]) -> str:
    """The text of a chat's events, in OpenAI's form."""
    return "".join(one.choices[0].delta.content or "" for one in parts if one.choices)


def called(answer: Any) -> str:
    """Says what the report of a chat in OpenAI's form says, if it calls the tool as asked.

    Raises:
        AssertionError: the arguments are others, or the option did not take effect.
    """
    (call,) = answer.choices[0].message.tool_calls
    assert set(json.loads(call.function.arguments)) == {"word"}
    return quarter(told(answer))


def refused(call: Callable[[], Any], kind: type[Exception]) -> str:
    """Says that a ratio of 3 was refused, in the client's own kind of error.

    Raises:
        AssertionError: it was taken, or the error does not say why not.
    """
    try:
        said = f"it was taken: {call()}"
    except kind as error:
        said = str(error)
    assert "ratio=3 must be" in said, said
    return "HTTP 400"


def run(client: str, checks: dict[str, Callable[[], str]]) -> None:
    """Run all checks, whatever becomes of one, and print a line for each."""
    for name, check in checks.items():
        try:
            ok, said = True, check()
        except Exception as error:
            ok, said = False, f"{type(error).__name__}: {error}"
        print(json.dumps({"client": client, "check": name, "ok": ok, "said": said}), flush=True)
