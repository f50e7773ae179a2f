#!/usr/bin/env python3
"""Puts a server under mixed load and counts what goes wrong. Exit code 1 if anything did.

    .venv/bin/python scripts/soak.py --seconds 60 --json soak.json

Without --model a small random decoder is served (the engine's work without the model's); with
``--model embedded`` SmolLM2. float32, so that an answer can be compared with the same request's
alone. A server at --address must have been started with ``--allow-options all`` and with the flags
that tools need (``qm_vllm_eval.serving.soak.AGENT_FLAGS``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from qm_vllm_eval.serving.soak import AGENT_FLAGS, FLAGS, NUM_BLOCKS, Soak

MUST_BE_ZERO = (
    "failed", "bad_requests_not_4xx", "leaked_blocks", "live_artifacts", "mismatches",
    "engine_deaths",
)


def main() -> int:
    """Parse, serve, load, report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="load and checks together")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--model", help="folder, or 'embedded'; default: a small random one")
    parser.add_argument("--address", help="of a server that runs already, in float32 and with "
                        "VLLM_SERVER_DEV_MODE=1; --model then names its tokenizer's folder")
    parser.add_argument("--clients", type=int, default=16, help="requests in flight")
    parser.add_argument(
        "--blocks", type=int, default=NUM_BLOCKS, help="KV cache, blocks of 32 tokens"
    )
    parser.add_argument("--async-scheduling", action="store_true",
                        help="as on a GPU; vLLM switches it off on a CPU otherwise")
    parser.add_argument("--offload", type=int, metavar="MIB",
                        help="vLLM's offloading connector beside ours, with this host memory")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = soak(options, Path(folder))
    text = json.dumps(figures, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    wrong = [name for name in MUST_BE_ZERO if figures[name]]
    if wrong:
        print(f"soak: not zero: {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


def soak(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The figures of one run."""
    from transformers import AutoTokenizer

    from qm_vllm.assets.embedded import ensure_model
    from qm_vllm.assets.essay import demo_document
    from qm_vllm_eval.serving.host_memory import offloading
    from qm_vllm_eval.serving.server import RemoteServer, Server
    from qm_vllm_eval.serving.tiny_model import TOOLS_TEMPLATE, make_tiny_chat_model
    from qm_vllm_eval.serving.traffic import Traffic

    embedded = ensure_model()
    model = Path(options.model) if options.model else folder / "tiny"
    if options.model == "embedded":
        model = embedded
    elif not options.model:
        make_tiny_chat_model(embedded, model, TOOLS_TEMPLATE)
    vocabulary = len(AutoTokenizer.from_pretrained(model))
    traffic = Traffic(
        served(options.address) if options.address else "soaked", demo_document().text,
        longest=1200, vocabulary=vocabulary, seed=options.seed,
    )
    arguments = [
        str(model), "--served-model-name", "soaked", *FLAGS, *AGENT_FLAGS,
        "--num-gpu-blocks-override", str(options.blocks), "--allow-options", "all",
    ]
    if options.offload:
        arguments += ["--kv-transfer-config", json.dumps(offloading(options.offload))]
    program = "qm_vllm_eval.serving.forced_async" if options.async_scheduling else (
        "qm_vllm.cli.main"
    )
    log = options.json.with_suffix(".log") if options.json else folder / "log.txt"
    if not options.address:
        log.unlink(missing_ok=True)
    started = time.time()
    with (
        contextlib.nullcontext(RemoteServer(options.address)) if options.address
        else Server(arguments, log, development=True, program=program)
    ) as server:
        run = Soak(server, traffic, options.seconds, options.clients, options.seed)
        figures = {**run.run(), "kv_blocks": server.num_blocks()}
    return {
        **figures, "seconds": options.seconds,
        "model": Path(options.model).name if options.model else "small random decoder",
        "clients": options.clients, "seed": options.seed,
        "async_scheduling": options.async_scheduling, "offload_mib": options.offload,
        "date": time.strftime("%Y-%m-%d", time.gmtime(started)), "machine": platform.machine(),
    }


def served(address: str) -> str:
    """The name of the model that a running server has."""
    with urllib.request.urlopen(address.rstrip("/") + "/v1/models", timeout=30) as answer:
        return str(json.load(answer)["data"][0]["id"])


if __name__ == "__main__":
    raise SystemExit(main())
