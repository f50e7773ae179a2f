"""JSON lines in and out of ``qm-vllm generate``: parse, check, resume. No engine here."""

from __future__ import annotations

import codecs
import json
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qm_vllm import json_lines
from qm_vllm.config import ConfigError
from qm_vllm.errors import UserError
from qm_vllm.request_options import request_args
from qm_vllm.texts import half_pair, json_bytes

FIELDS = {"id", "prompt", "messages", "quickmerge"}


@dataclass(frozen=True)
class Item:
    """One request of the input file; ``line`` counts from 1."""

    line: int
    id: str | int
    prompt: str | None
    messages: list[dict[str, Any]] | None
    options: dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """A line that cannot be run, with a sentence that says why."""

    line: int
    message: str


class LineRefused(Exception):
    """A line breaks a rule; the message says which."""


def read_items(
    path: Path, passed: Callable[[int], object] = lambda size: None
) -> Iterator[Item | Problem]:
    """Parse the input line by line. Empty lines are skipped; a bad line ends nothing.

    Of the lines before, only the ids are kept in memory.

    Args:
        passed: is called with the bytes of each line as it is read.

    Raises:
        UserError: the file cannot be opened.
    """
    seen: dict[str, int] = {}
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    with file:
        for number, raw in enumerate(file, start=1):
            passed(len(raw))
            if not raw.removeprefix(codecs.BOM_UTF8).strip():
                continue
            try:
                item = parse_line(number, raw)
                key = id_key(item.id)
                if key in seen:
                    raise LineRefused(f"the id {key:.80} stands on line {seen[key]} already")
                seen[key] = number
                yield item
            except LineRefused as refused:
                yield Problem(number, str(refused))


class Unfinished:
    """The items of an input file whose ids an output does not hold, read as they are asked for.

    To be iterated once.

    Attributes:
        problems: the bad lines so far. skipped: items so far that the output holds.
        position: bytes read so far. size: bytes of the file; None where it has no length.
    """

    def __init__(self, path: Path, done: set[str]) -> None:
        self.problems: list[Problem] = []
        self.skipped = self.position = 0
        self._path, self._done = path, done

    @property
    def size(self) -> int | None:
        found = self._path.stat()
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def __iter__(self) -> Iterator[Item]:
        for entry in read_items(self._path, self._pass):
            if isinstance(entry, Problem):
                self.problems.append(entry)
            elif id_key(entry.id) in self._done:
                self.skipped += 1
            else:
                yield entry

    def _pass(self, size: int) -> None:
        self.position += size


def parse_line(number: int, raw: bytes | str) -> Item:
    """One line as an :class:`Item`.

    Raises:
        LineRefused: the line breaks a rule; the message says which.
    """
    try:
        value = json_lines.parse(raw)
    except ValueError as error:
        whole = raw[-1:] in (b"\n", "\n") or not isinstance(error.__cause__, json.JSONDecodeError)
        cut = "" if whole else "; the line has no end, so the file may have been cut off there"
        raise LineRefused(f"not valid JSON ({error}{cut})") from error
    if not isinstance(value, dict):
        raise LineRefused("not a JSON object; write {\"id\": ..., \"prompt\": ...}")
    identity = value.get("id")
    if isinstance(identity, bool) or not isinstance(identity, (str, int)) or identity == "":
        raise LineRefused('needs an "id" that is a string or a whole number')
    unknown = sorted(set(value) - FIELDS)
    if unknown:
        allowed = ", ".join(sorted(FIELDS))
        raise LineRefused(f"unknown field {unknown[0][:80]!r}; allowed: {allowed}")
    prompt, messages = value.get("prompt"), value.get("messages")
    if (prompt is None) == (messages is None):
        raise LineRefused('needs either "prompt" or "messages", not both')
    if prompt is not None and (not isinstance(prompt, str) or not prompt):
        raise LineRefused('"prompt" must be a text that is not empty')
    if prompt is not None:
        _check_text(prompt, "prompt")
    if messages is not None:
        _check_messages(messages)
    return Item(number, identity, prompt, messages, _options(value.get("quickmerge")))


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise LineRefused('"messages" must be a list that is not empty')
    for message in messages:
        if not isinstance(message, dict) or not (
            isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        ):
            raise LineRefused('each message needs a "role" and a "content", both texts')
        for name in ("role", "content"):
            _check_text(message[name], name)


def _check_text(text: str, name: str) -> None:
    half = half_pair(text)
    if half:
        raise LineRefused(f'"{name}" holds {half}, which is no text; remove or replace it')


def _options(values: Any) -> dict[str, Any]:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise LineRefused('"quickmerge" must be an object of options, such as {"ratio": 0.3}')
    try:
        return request_args(**values)
    except ConfigError as error:
        raise LineRefused(f'"quickmerge": {error}') from error


def id_key(identity: str | int) -> str:
    """An id as JSON, so that 1 and "1" differ."""
    return json.dumps(identity, ensure_ascii=False)


def finished_ids(path: Path) -> set[str]:
    """Ids (as :func:`id_key`) already in the output; repairs the end of an interrupted run.

    A last line without its newline was cut off while it was written: it is removed, so that
    its request runs again, unless it is complete, in which case only the newline is added.

    Raises:
        UserError: a line before the last is not one this command wrote.
    """
    if not path.exists():
        return set()
    done: set[str] = set()
    try:
        with path.open("r+b") as file:
            for number, raw in enumerate(file, start=1):
                key = _output_id(raw)
                if key is not None:
                    done.add(key)
                if raw.endswith(b"\n"):
                    if key is None:
                        raise UserError(
                            f"line {number} of {path} is not a result of this command; move the "
                            "file away or name another --output"
                        )
                elif key is not None:
                    file.seek(0, 2)
                    file.write(b"\n")
                else:
                    file.seek(-len(raw), 2)
                    file.truncate()
    except OSError as error:
        raise UserError(f"cannot use {path} as output: {error.strerror}") from error
    return done


def _output_id(raw: bytes) -> str | None:
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("id"), (str, int)):
        return None
    return id_key(value["id"])


def result_line(item: Item, text: str, report: dict[str, Any]) -> str:
    """One line of the output file, with its newline; UTF-8 can hold it, whatever the id is."""
    value = {"id": item.id, "text": text, "quickmerge": report}
    return json_bytes(json.dumps(value, ensure_ascii=False) + "\n").decode()
