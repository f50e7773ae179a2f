"""What the commands share: errors as sentences, budget options, reports of requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from qm_vllm import calibration
from qm_vllm.config import ConfigError, QuickMergeConfig
from qm_vllm.errors import UserError
from qm_vllm.presets import PRESETS

RatioOption = Annotated[
    float | None, typer.Option(help="Share of the prompt's tokens to keep, in (0, 1].")
]
MaxKeptOption = Annotated[
    int | None, typer.Option(help="Keep at most this many tokens of a prompt.")
]
AlphaOption = Annotated[
    float | None,
    typer.Option(help="Keep tokens whose normalised saliency reaches this, in [0, 1]."),
]
MaxErrorOption = Annotated[
    float | None,
    typer.Option(help="Fewest tokens with which no head of the prompt's end reads something "
                 "else by more than this, in [0, 1]; no measure of quality."),
]
PresetOption = Annotated[
    str | None, typer.Option(help=f"Settings by name: {', '.join(PRESETS)}.")
]
QueryVisibleOption = Annotated[
    bool | None,
    typer.Option(
        "--query-visible/--query-blind",
        help="Whether the choice may look at the end of the prompt.",
    ),
]


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
