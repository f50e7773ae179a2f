"""vLLM's own front doors: the offline engine, sampling parameters, the server."""

from __future__ import annotations

import sys
from typing import Any


def offline_engine(**arguments: Any) -> Any:
    """A ``vllm.LLM``.

    Raises:
        ImportError: vLLM is not installed, or is broken.
    """
    from vllm import LLM

    return LLM(**arguments)


def sampling(**arguments: Any) -> Any:
    """A ``vllm.SamplingParams``."""
    from vllm import SamplingParams

    return SamplingParams(**arguments)


def longest_prompt(llm: Any) -> int:
    """Longest prompt plus output that an offline engine accepts, in tokens."""
    return int(llm.llm_engine.model_config.max_model_len)


def shut_down(llm: Any) -> None:
    """End the engine's processes, if it has any, before the interpreter does."""
    core = getattr(getattr(llm, "llm_engine", None), "engine_core", None)
    if core is not None and hasattr(core, "shutdown"):
        core.shutdown()


def run_server(arguments: list[str]) -> None:
    """Run the program ``vllm`` with these arguments until it ends.

    Its own script asks the package metadata for a version that the CPU wheel does not have under
    that name, so its parts are called here.

    Raises:
        ImportError: vLLM is missing, or its entry point is not where this version has it.
    """
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    # API server processes and the usage text of errors look at the program's arguments.
    sys.argv = ["vllm", *arguments]
    parser: Any = FlexibleArgumentParser(prog="vllm")
    command: Any = ServeSubcommand()
    subparsers = parser.add_subparsers(required=True, dest="subparser")
    command.subparser_init(subparsers).set_defaults(dispatch_function=command.cmd)
    parsed = parser.parse_args(arguments)
    configure_logging_from_args(parsed)
    command.validate(parsed)
    command.cmd(parsed)
