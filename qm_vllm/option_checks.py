"""Checks of option values: the value in its proper type, or a sentence on what is allowed."""

from __future__ import annotations

import math
from typing import Any

MOST_MESSAGE = 600
LARGEST = (1 << 31) - 1
"""Most that a count of tokens, layers or jobs can be."""


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


def integer(name: str, value: Any, low: int, high: int = LARGEST) -> int:
    """A whole number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ConfigError(f"{name}={value!r} must be a whole number >= {low}")
    if value > high:
        raise ConfigError(f"{name}={value!r} must be a whole number <= {high}")
    if value < low or (isinstance(value, float) and not value.is_integer()):
        raise ConfigError(f"{name}={value!r} must be a whole number >= {low}")
    return int(value)


def real(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> float:
    """A finite number between ``low`` and ``high``."""
    allowed = f"{'greater than' if open_low else 'at least'} {low:g} and at most {high:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name}={value!r} must be a number {allowed}")
    # The bounds come first: a whole number beyond them may be too large for a float.
    if value > high or value < low or (open_low and value <= low) or not math.isfinite(value):
        raise ConfigError(f"{name}={value!r} must be {allowed}")
    return float(value)


MOST_RANGES = 1000


def ranges(name: str, value: Any) -> tuple[tuple[int, int], ...]:
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


def pair(name: str, value: Any) -> tuple[int, int]:
    """One half-open (start, stop) pair."""
    (found,) = ranges(name, (value,))
    return found


def text(name: str, value: Any) -> str:
    """The name of a file."""
    if not isinstance(value, str):
        raise ConfigError(f"{name}={value!r} must be the name of a file")
    return value


MOST_HINT = 1024
"""Characters of a hint."""
NO_HINT = ("", "auto")
"""Hints that say nothing of a prompt: none, and "auto" where no request's schema is known."""


def hint(name: str, value: Any) -> str:
    """A short text; an empty one is none, so that a request can do without the engine's."""
    if not isinstance(value, str):
        raise ConfigError(f"{name}={value!r} must be a text")
    if len(value) > MOST_HINT:
        raise ConfigError(
            f"{name} has {len(value):,} characters; at most {MOST_HINT:,} are allowed: say in "
            "fewer words what will be asked"
        )
    return value


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """One of the allowed names."""
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is unknown; allowed: {', '.join(allowed)}")
    return str(value)


def some(
    name: str, value: Any, allowed: tuple[str, ...], others: tuple[str, ...] = ("none",)
) -> tuple[str, ...]:
    """Some of the allowed names, each once: a sequence, or text with commas ("none": none).

    Args:
        others: values that a message mentions beside the allowed names.
    """
    given = value
    if isinstance(value, str):
        given = [] if value in ("", "none") else [part.strip() for part in value.split(",")]
    if not isinstance(given, (list, tuple)) or any(one not in allowed for one in given):
        raise ConfigError(
            f"{name}={value!r} is unknown; allowed: {', '.join(others)}, or some of "
            f"{', '.join(allowed)}"
        )
    return tuple(one for one in allowed if one in given)


def some_or_auto(name: str, value: Any, allowed: tuple[str, ...]) -> str | tuple[str, ...]:
    """"auto", or what :func:`some` takes."""
    return "auto" if value == "auto" else some(name, value, allowed, ("auto", "none"))


def agree(config: Any) -> None:
    """Raise ConfigError if two fields of a configuration contradict each other."""
    score, depth = config.score_layers, config.encoder_layers
    if score is not None and depth is not None and score[1] > depth:
        raise ConfigError(f"score_layers={score} must end at or below encoder_layers={depth}")
    if config.hint not in NO_HINT and config.effective_saliency != "query":
        raise ConfigError(
            f"hint needs saliency='query' or 'auto': saliency={config.effective_saliency!r} looks "
            "at no text behind the prompt"
        )
    if config.max_kept is None:
        return
    if config.min_kept > config.max_kept:
        raise ConfigError(f"min_kept={config.min_kept} is larger than max_kept={config.max_kept}")
    floor = config.protect_first + config.protect_last
    if config.max_kept < floor:
        raise ConfigError(
            f"max_kept={config.max_kept} cannot hold the protected positions "
            f"(protect_first + protect_last = {floor}); raise it or protect fewer"
        )
