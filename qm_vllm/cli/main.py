"""The typer application behind ``qm-vllm``: names the commands, nothing else."""

from __future__ import annotations

from typing import Annotated

import typer

from qm_vllm import __version__
from qm_vllm.cli.calibrate import calibrate
from qm_vllm.cli.compare import compare
from qm_vllm.cli.demo import demo
from qm_vllm.cli.doctor import doctor
from qm_vllm.cli.evaluate import app as evaluations
from qm_vllm.cli.evaluate_ego4d import ego4d_nlq
from qm_vllm.cli.evaluate_paper import paper_claims, paper_tables
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

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}

app.command()(demo)
app.command()(generate)
app.command(context_settings=PASS_THROUGH)(serve)
app.command()(inspect)
app.command()(compare)
evaluations.command()(ego4d_nlq)
evaluations.command()(paper_tables)
evaluations.command()(paper_claims)
app.add_typer(evaluations, name="eval")
app.command()(calibrate)
app.command()(train_prior)
app.command()(doctor)


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
