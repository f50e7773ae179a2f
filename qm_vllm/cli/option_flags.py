"""Flags of a command for options of the configuration, made from their declarations."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from inspect import Parameter
from typing import Annotated, Any

import typer

from qm_vllm.cli.common import configuration, sentences
from qm_vllm.config import OPTIONS, QuickMergeConfig
from qm_vllm.options import Form, Option, Setter
from qm_vllm.presets import PRESET

PANELS = {
    Setter.REQUEST: "Compression",
    Setter.RESEARCH: "Compression, for research",
    Setter.ENGINE: "The engine's own options",
}
"""Headings in a command's help."""
PLACE = "config"
"""Name of the parameter that the flags stand for."""
FLAGS = {PRESET.name: PRESET, **OPTIONS}
"""What a command can take, by name."""


def takes_options(
    *names: str, **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command flags for some options instead of its keyword-only parameter ``config``.

    The command gets the :class:`QuickMergeConfig` of the flags that were given. One that is
    impossible ends the program with a sentence.

    Args:
        names: options of the configuration, and "preset", in the order of the help.
        defaults: of options that have another default in this command.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        hints = typing.get_type_hints(QuickMergeConfig)
        flags = [_flag(FLAGS[name], hints.get(name), defaults.get(name)) for name in names]

        @functools.wraps(command)
        def with_flags(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            with sentences():
                values[PLACE] = configuration(**{
                    name: FLAGS[name].from_text("--" + name.replace("_", "-"), value)
                    for name, value in given.items()
                })
            command(**values)

        parameters: list[Parameter] = []
        for parameter in signature.parameters.values():
            parameters += flags if parameter.name == PLACE else [parameter]
        # typer reads both of these.
        with_flags.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        with_flags.__annotations__ = {one.name: one.annotation for one in parameters}
        return with_flags

    return decorate


def _flag(one: Option, hint: Any, default: Any) -> Parameter:
    """The parameter of a command for one option; None: it was not given."""
    usual = one.default_text if default is None else ""
    info = typer.Option(
        *([one.flags] if one.flags else []),
        help=f"{one.help}. Default: {usual}." if usual else f"{one.help}.",
        rich_help_panel=PANELS[one.by],
    )
    return Parameter(
        one.name, Parameter.KEYWORD_ONLY, default=default,
        annotation=Annotated[_argument(one, hint) | None, info],
    )


def _argument(one: Option, hint: Any) -> Any:
    """The type that the command line parses: the field's own, or text."""
    if one.form is not Form.SCALAR or hint is None:
        return str
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint
