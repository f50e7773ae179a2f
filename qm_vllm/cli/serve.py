"""``qm-vllm serve``: vLLM's OpenAI-compatible server with the plug-in on."""

from __future__ import annotations

import argparse
import json
import os
from typing import Annotated, Any

import typer

from qm_vllm.api import engine_cli_args
from qm_vllm.cli.common import errors, sentences
from qm_vllm.cli.engine_flags import refuse_ours
from qm_vllm.cli.option_flags import takes_options
from qm_vllm.config import OPTIONS, QuickMergeConfig
from qm_vllm.errors import UserError
from qm_vllm.presets import PRESET
from qm_vllm.processor import computes_bf16
from qm_vllm_patches import llm

OTHERS = "--kv-transfer-config"
"""Another connector for the same engine, as ``vllm serve`` takes one: it goes beside ours."""


@takes_options(PRESET.name, *OPTIONS)
def serve(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="Model folder or name, as for `vllm serve`.")
    ] = None,
    *,
    config: QuickMergeConfig,
    show_arguments: Annotated[
        bool, typer.Option(help="Print vLLM's arguments, one a line, and stop.")
    ] = False,
    vllm_help: Annotated[bool, typer.Option(help="Show all flags of `vllm serve`.")] = False,
) -> None:
    """Serve MODEL over HTTP with compressed prompts; other flags go to `vllm serve` as they are."""
    with sentences():
        if vllm_help:
            start_server(["serve", "--help=all"])
            return
        arguments = server_arguments(model, config, list(context.args))
        if show_arguments:
            typer.echo("\n".join(arguments))
            return
        chosen = any(argument.split("=")[0] == "--dtype" for argument in arguments)
        if not chosen and not computes_bf16():
            errors().print("This CPU does not multiply bfloat16: adding --dtype float32.")
            arguments += ["--dtype", "float32"]
        start_server(arguments)


def server_arguments(model: str | None, config: QuickMergeConfig, rest: list[str]) -> list[str]:
    """The arguments of ``vllm`` for this server.

    Raises:
        UserError: no model was named, the rest sets a flag that the plug-in needs, or its
            ``--kv-transfer-config`` is no connector's configuration.
    """
    others, rest = _others(rest)
    refuse_ours(rest)
    if model is None or model.startswith("-"):
        raise UserError("name the model to serve: qm-vllm serve MODEL [flags]")
    return ["serve", model, *engine_cli_args(config, others), *rest]


def _others(rest: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The connectors that ``--kv-transfer-config`` names beside ours, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    spelled = OTHERS.replace("-", "_").replace("__", "--")  # vLLM takes both
    parser.add_argument(OTHERS, spelled, action="append", dest="others", default=[])
    try:
        found, left = parser.parse_known_args(rest)
        given = [json.loads(text) for text in found.others]
    except (argparse.ArgumentError, json.JSONDecodeError) as error:
        raise UserError(f"{OTHERS} must be followed by a JSON object ({error})") from error
    if any(not isinstance(one, dict) or "kv_connector" not in one for one in given):
        raise UserError(f'{OTHERS} must name a connector: {{"kv_connector": ...}}')
    return given, left


def start_server(arguments: list[str]) -> None:
    """Run ``vllm`` with these arguments until the server ends.

    Raises:
        UserError: vLLM is missing, or its entry point is not where this version has it.
    """
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        llm.run_server(arguments)
    except ImportError as error:
        raise UserError(
            f"vLLM's server cannot be imported ({error}); run `qm-vllm doctor` to see which "
            "version is installed and which are supported"
        ) from error
