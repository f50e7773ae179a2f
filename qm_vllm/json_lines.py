"""One line of a JSON Lines file, read strictly: what JSON leaves open is refused, not guessed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def parse(raw: bytes | str, *, nan: bool = False) -> Any:
    """The value of one line, with or without a byte-order mark and a line end.

    Args:
        raw: UTF-8 if bytes.
        nan: allow NaN and Infinity, which JSON does not have and some programs write.

    Raises:
        ValueError: it is no JSON, names a field twice, or is no UTF-8; the message says where.
    """
    try:
        text = (raw if isinstance(raw, str) else raw.decode("utf-8-sig")).rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8") from error
    try:
        return json.loads(
            text, object_pairs_hook=_each_once, parse_constant=float if nan else _refused
        )
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        raise ValueError(f"{what} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _each_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    held: dict[str, Any] = {}
    for name, value in pairs:
        if name in held:  # readers differ in which of the two they take
            raise ValueError(f"the field {name[:80]!r} stands there twice")
        held[name] = value
    return held


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")
