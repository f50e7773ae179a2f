"""Checks of single option values: the value in its proper type, or what is allowed."""

from __future__ import annotations

import math
from typing import Any

MOST_MESSAGE = 600
LARGEST = (1 << 31) - 1


class ConfigError(ValueError):
    """A field of the configuration is unknown or has an impossible value.

    A message that quotes a huge value is cut in its middle.
    """

    def __init__(self, message: str) -> None:
        if len(message) > MOST_MESSAGE:
            message = f"{message[: MOST_MESSAGE // 2]} ... {message[-MOST_MESSAGE // 2 :]}"
        super().__init__(message)


def boolean(name: str, value: Any) -> bool:
    """true, false, 0, 1 and their names."""
    if isinstance(value, bool):
        return value
    if value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ConfigError(f"{name}={value!r} must be true or false")


def integer(name: str, value: Any, low: int) -> int:
    """A whole number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ConfigError(f"{name}={value!r} must be a whole number >= {low}")
    if value > LARGEST:
        raise ConfigError(f"{name}={value!r} must be a whole number <= {LARGEST}")
    if value < low or (isinstance(value, float) and not value.is_integer()):
        raise ConfigError(f"{name}={value!r} must be a whole number >= {low}")
    return int(value)


def real(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> float:
    """A finite number between ``low`` and ``high``."""
    allowed = f"{'greater than' if open_low else 'at least'} {low:g} and at most {high:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name}={value!r} must be a number {allowed}")
    if not math.isfinite(value) or value > high or value < low or (open_low and value <= low):
        raise ConfigError(f"{name}={value!r} must be {allowed}")
    return float(value)


MOST_RANGES = 1000


def ranges(value: Any, name: str = "protect_ranges") -> tuple[tuple[int, int], ...]:
    """Half-open (start, stop) pairs of positions."""
    if isinstance(value, (list, tuple)) and len(value) > MOST_RANGES:
        raise ConfigError(f"{name} has {len(value)} ranges; at most {MOST_RANGES} are allowed")
    try:
        pairs = tuple((int(start), int(stop)) for start, stop in value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{name}={value!r} must hold (start, stop) pairs") from error
    for start, stop in pairs:
        if not 0 <= start < stop <= LARGEST:
            raise ConfigError(
                f"{name} has ({start}, {stop}); it must be 0 <= start < stop <= {LARGEST}"
            )
    return pairs


def names(name: str, value: Any, allowed: tuple[str, ...]) -> str | tuple[str, ...]:
    """Auto, or some of the allowed names: a sequence, or text with commas ("none": none)."""
    if value == "auto":
        return "auto"
    if isinstance(value, str):
        value = [] if value in ("", "none") else [part.strip() for part in value.split(",")]
    if not isinstance(value, (list, tuple)) or any(one not in allowed for one in value):
        raise ConfigError(
            f"{name}={value!r} is unknown; allowed: auto, none, or some of {', '.join(allowed)}"
        )
    return tuple(one for one in allowed if one in value)
