"""Texts that no encoding has: half of a surrogate pair, which JSON may hold and UTF-8 may not."""

from __future__ import annotations

import re

_HALF = re.compile("[\ud800-\udfff]")


def half_pair(text: str) -> str:
    """Where the first half of a surrogate pair stands, as part of a sentence; "" if there is none.

    >>> half_pair("ab\\ud83d")
    'half of a surrogate pair (\\\\ud83d) at character 3'
    """
    found = _HALF.search(text)
    if found is None:
        return ""
    return f"half of a surrogate pair (\\u{ord(found[0]):04x}) at character {found.start() + 1}"


def json_bytes(line: str) -> bytes:
    """A line of JSON as UTF-8; half of a pair, which only a string can hold, becomes its escape."""
    return line.encode("utf-8", "backslashreplace")
