"""The typer application behind ``qm-vllm``: its own commands, and those of installed studies.

A distribution that names a function or a ``typer.Typer`` in the entry-point group
:data:`GROUP` adds a command under the entry point's name.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer

from qm_vllm import __version__
from qm_vllm.cli.demo import demo
from qm_vllm.cli.doctor import doctor
from qm_vllm.cli.engine_flags import PASS_THROUGH
from qm_vllm.cli.generate import generate
from qm_vllm.cli.inspect import inspect
from qm_vllm.cli.serve import serve
from qm_vllm.cli.train_prior import train_prior

app = typer.Typer(
    name="qm-vllm",
    help="Prompt compression inside vLLM: a long prompt served from a fraction of its KV blocks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

GROUP = "qm_vllm.commands"

app.command(context_settings=PASS_THROUGH)(demo)
app.command(context_settings=PASS_THROUGH)(generate)
app.command(context_settings=PASS_THROUGH)(serve)
app.command(context_settings=PASS_THROUGH)(inspect)
app.command()(train_prior)
app.command()(doctor)


def _broken(point: EntryPoint, error: Exception) -> Any:
    """A command that says why the real one is not there; the others go on working."""

    def command(context: typer.Context) -> None:
        typer.echo(
            f"error: {point.value} cannot be imported ({type(error).__name__}: {error}); install "
            "its distribution again", err=True,
        )
        raise typer.Exit(1)

    command.__doc__ = "Not available: its distribution is installed but cannot be imported."
    return command


def add_commands(target: typer.Typer) -> None:
    """Add the commands of other distributions, by name."""
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            found = point.load()
        except Exception as error:
            found = _broken(point, error)
            target.command(point.name, context_settings=PASS_THROUGH)(found)
            continue
        if isinstance(found, typer.Typer):
            target.add_typer(found, name=point.name)
        else:
            target.command(point.name)(found)


add_commands(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print and stop."),
    ] = False,
) -> None:
    """Options of the program itself."""


if __name__ == "__main__":
    app()
