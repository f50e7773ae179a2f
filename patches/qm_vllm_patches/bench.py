"""``vllm bench serve`` for builds whose own program does not start: ``python -m`` this module.

The CPU build's program asks the package metadata for a version that it has under another name.
"""

from __future__ import annotations

import sys
from typing import Any


def bench_server(arguments: list[str]) -> None:
    """Run vLLM's benchmark of a server.

    Args:
        arguments: as behind ``vllm bench serve``.

    Raises:
        ImportError: vLLM is missing, or its benchmark is not where this version has it.
    """
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: Any = FlexibleArgumentParser(prog="vllm bench serve")
    add_cli_args(parser)
    main(parser.parse_args(arguments))


if __name__ == "__main__":
    bench_server(sys.argv[1:])
