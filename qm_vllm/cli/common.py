"""What the commands share: errors as sentences, configurations, lists in options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from qm_vllm import calibration
from qm_vllm.config import ConfigError, QuickMergeConfig
from qm_vllm.errors import UserError


def errors() -> Console:
    """Where progress and errors go: standard error, so that output can be piped."""
    return Console(stderr=True)


@contextmanager
def sentences() -> Iterator[None]:
    """Turn a :class:`UserError` or :class:`ConfigError` into one sentence and exit code 1."""
    try:
        yield
    except (UserError, ConfigError) as error:
        errors().print(f"[bold red]error:[/] {_plain(str(error))}", highlight=False)
        raise typer.Exit(1) from None


def _plain(text: str) -> str:
    """Keep rich from reading square brackets of the text as markup."""
    return text.replace("[", "\\[")


def configuration(preset: str | None = None, **values: Any) -> QuickMergeConfig:
    """A configuration from the options that were given (None means: not given).

    Args:
        preset: settings by name, under the values.

    Raises:
        ConfigError: a value is impossible, there is no such preset, or the calibration cannot be
            read.
    """
    given = {k: v for k, v in values.items() if v is not None}
    config = QuickMergeConfig.preset(preset, **given) if preset else QuickMergeConfig(**given)
    if config.calibration is not None:
        calibration.load(Path(config.calibration))
    return config


def names(text: str, option: str) -> tuple[str, ...]:
    """An option's comma-separated names, each once.

    Raises:
        UserError: there are none.
    """
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise UserError(f"{option} is empty; give names separated by commas")
    return found


def numbers(text: str, option: str, top: float = 1.0) -> tuple[float, ...]:
    """An option's comma-separated numbers in (0, top].

    Raises:
        UserError: there are none, or one is no number or out of range.
    """
    found = []
    for part in names(text, option):
        try:
            value = float(part)
        except ValueError:
            raise UserError(f"{option} has {part!r}, which is not a number") from None
        if not 0 < value <= top:
            raise UserError(f"{option} has {part}; allowed: greater than 0, at most {top:g}")
        found.append(value)
    return tuple(found)
