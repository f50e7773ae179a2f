"""Starts a server, lets each client check what it sends and gets, and shows a table.

    scripts/clients.sh                    the embedded SmolLM2
    scripts/clients.sh --model DIR        another model with a chat template
    scripts/clients.sh --only openai,lm-eval

Exit code 1 if a check failed. The clients run in an environment of their own (``--python``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qm_vllm.assets.embedded import ensure_model
from qm_vllm.assets.essay import demo_document
from qm_vllm_eval.serving.clients import harness
from qm_vllm_eval.serving.clients.checks import MODEL
from qm_vllm_eval.serving.clients.harness import Check
from qm_vllm_eval.serving.server import Server
from qm_vllm_eval.serving.soak import AGENT_FLAGS

SDKS = ("openai", "anthropic", "litellm")
ALL = (*SDKS, "bench", "lm-eval")
FLAGS = (
    "--served-model-name", MODEL, "--ratio", "0.4", "--dtype", "float32", "--block-size", "32",
    "--max-model-len", "4096", "--enforce-eager", *AGENT_FLAGS,
    # Else vLLM holds the arguments of a tool to its schema only where the client says "strict".
    "--tool-strict-level", "parameter",
)
WORDS = 450
"""Of the document: some 600 tokens."""
OFFLINE = {
    "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false",
}
"""Nothing here needs anything but the server."""


def main() -> int:
    """Parse, serve, check, show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, help="folder; default: the embedded SmolLM2")
    parser.add_argument("--python", default=sys.executable, help="interpreter with the clients")
    parser.add_argument("--only", default=",".join(ALL), help=f"some of {', '.join(ALL)}")
    parser.add_argument("--log", type=Path, help="file for the server's log")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(ALL):
        parser.error(f"unknown client {', '.join(sorted(unknown))}; known: {', '.join(ALL)}")
    model = (options.model or ensure_model()).resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = options.log or folder / "log.txt"
        with Server([str(model), *FLAGS], log) as server:
            checks: list[Check] = []
            for one in _checks(chosen, options.python, server.address, model, folder):
                checks.append(one)
                result = "ok" if one.ok else "FAILED"
                print(f"{one.client}: {one.check}: {result}", file=sys.stderr, flush=True)
            if not server.alive():
                checks.append(Check("server", "lives", False, server.tail()))
    show(checks)
    return int(not checks or not all(one.ok for one in checks))


def _checks(
    chosen: list[str], python: str, address: str, model: Path, folder: Path
) -> Iterator[Check]:
    text = " ".join(demo_document().text.split()[:WORDS])
    environment = {**os.environ, **OFFLINE, "HF_HOME": str(folder / "hf")}
    for client in chosen:
        if client in SDKS:
            yield from sdk(client, python, address, text, folder, environment)
        elif client == "bench":
            yield from harness.bench(address, model, folder, environment)
        else:
            yield from harness.lm_eval(python, address, model, text, folder, environment)


def sdk(
    client: str, python: str, address: str, text: str, folder: Path, environment: dict[str, str]
) -> Iterator[Check]:
    """The lines that a client's own program prints."""
    file, home = folder / "document.txt", Path(__file__).parents[3]
    file.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [python, "-m", f"qm_vllm_eval.serving.clients.{client}_sdk", address, str(file)],
        env={**environment, "PYTHONPATH": str(home)}, capture_output=True, text=True, check=False,
    )
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            yield Check(**json.loads(line))
    if done.returncode:
        yield Check(client, "ends well", False, done.stderr[-1500:])


def show(checks: list[Check]) -> None:
    """One table: client, check, result, what was seen."""
    table = Table("client", "check", "", "seen")
    for one in checks:
        table.add_row(one.client, one.check, "ok" if one.ok else "FAILED", escape(one.said))
    Console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())
