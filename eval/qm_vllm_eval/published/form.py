"""How figures look: Markdown tables and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]


class Unknown(ValueError):
    """A page asks for a table or a figure that no result file has."""


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of rows with equal keys."""
    if not rows:
        raise Unknown("a table without rows")
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    return "\n".join(lines + [f"| {' | '.join(str(v) for v in row.values())} |" for row in rows])


def ratio_of(text: str) -> float:
    """The number behind ``1/4``, ``1/2.4`` or ``0.25``; 1/2.4 is stored as 0.4167."""
    over, _, under = text.partition("/")
    return float(over) / float(under) if under else float(text)


def figure(value: Any, form: str = ".2f") -> str:
    """A number as a page says it.

    Args:
        value: a number, or a text that is left alone.
        form: a format of Python, or ``s`` (seconds), ``ms`` (seconds as milliseconds), ``minutes``
            (of seconds), ``%`` and ``percent`` (a share, with one decimal or none), ``lost%`` (what
            a share lacks of 1).
    """
    if isinstance(value, str):
        return value
    scaled = {
        "s": (1.0, ".2f", " s"), "ms": (1e3, ",.0f", " ms"), "%": (100.0, ".1f", " %"),
        "percent": (100.0, ".0f", " %"),
        "minutes": (1 / 60, ".0f", ""),
    }
    if form == "lost%":
        return f"{100 * (1 - value):.0f} %"
    times, shape, unit = scaled.get(form, (1.0, form, ""))
    return f"{value if times == 1 else times * value:{shape}}{unit}"
