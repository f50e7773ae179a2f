"""vLLM's own front doors: the offline engine, sampling parameters, the server."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, NoReturn


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


def refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises where a request is refused and the engine goes on.

    Raises:
        ImportError: vLLM is not installed, or is broken.
    """
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError, ValueError, TypeError, OverflowError


def longest_prompt(llm: Any) -> int:
    """Longest prompt plus output that an offline engine accepts, in tokens."""
    return int(llm.llm_engine.model_config.max_model_len)


def shut_down(llm: Any) -> None:
    """End the engine's processes, if it has any, before the interpreter does."""
    core = getattr(getattr(llm, "llm_engine", None), "engine_core", None)
    if core is not None and hasattr(core, "shutdown"):
        core.shutdown()


def engine_arguments(arguments: list[str]) -> dict[str, Any]:
    """Keyword arguments of :func:`offline_engine` from flags of vLLM's own command line.

    Args:
        arguments: as typed after ``vllm serve MODEL``: ``["--block-size", "16"]``.

    Returns:
        only what was given, by the field of vLLM's ``EngineArgs``; defaults are left out, so that
        they do not replace a caller's own.

    Raises:
        ImportError: vLLM is not installed, or is broken.
        ValueError: a flag is unknown or a value impossible, with the parser's sentence.
    """
    parser = _engine_parser()
    unset = object()
    names = vars(parser.parse_args([]))
    parser.set_defaults(**dict.fromkeys(names, unset))
    parsed = vars(parser.parse_args(arguments))
    return {name: value for name, value in parsed.items() if value is not unset}


def engine_flags() -> list[str]:
    """The long flags that :func:`engine_arguments` knows.

    Raises:
        ImportError: vLLM is not installed, or is broken.
    """
    return re.findall(r"--[a-z][\w-]+", _engine_parser().format_usage())


def _engine_parser() -> argparse.ArgumentParser:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):
        """The parser of vLLM's engine, which ends no process."""

        def error(self, message: str) -> NoReturn:
            raise ValueError(message)

    # No abbreviations: one could mean another flag in the next version.
    parser: Any = Parser(prog="vllm", add_help=False, allow_abbrev=False)
    EngineArgs.add_cli_args(parser)
    return parser  # type: ignore[no-any-return]


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
