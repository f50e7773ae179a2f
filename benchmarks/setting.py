"""What the benchmarks share: the model, one engine per child process, and facts for the record."""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOCK = 32
PAUSE = 0.3
"""Seconds before a child's turn, in which the threads of the one before go to sleep."""
STRIDE = 97
"""Tokens between the starts of two prompts in the essay."""


def common_options(parser: argparse.ArgumentParser) -> None:
    """The options of every script that measures time."""
    parser.add_argument("--model", help="default: the embedded SmolLM2-135M-Instruct")
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--dtype", help="default: bfloat16 where it is fast, else float32")
    parser.add_argument(
        "--enforce-eager", action="store_true", help="without compilation, which is vLLM's default"
    )
    parser.add_argument("--json", type=Path)


def fill_in(args: argparse.Namespace) -> None:
    """Defaults that take a look at the machine."""
    from qm_vllm.processor import best_dtype

    facts()  # of the code that runs, whatever is committed meanwhile
    args.model, args.dtype = embedded(args.model), args.dtype or best_dtype()


def embedded(model: str | None) -> str:
    """The model's folder; the embedded SmolLM2 where none was named."""
    from qm_vllm.assets.embedded import ensure_model

    return model or str(ensure_model())


class Child:
    """A process that answers messages; ``work(pipe, *arguments)`` says "ready", None ends it."""

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=work, args=(end, *arguments), daemon=True)
        self.process.start()
        end.close()  # ours is closed: if the child dies, recv says so instead of waiting
        if self.pipe.recv() != "ready":
            raise RuntimeError("the engine did not start")

    def ask(self, message: Any) -> Any:
        """Its answer to one message, after a pause."""
        time.sleep(PAUSE)
        self.pipe.send(message)
        return self.pipe.recv()

    def stop(self) -> None:
        """Let it end."""
        self.pipe.send(None)
        self.process.join(30)


def in_child(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run ``work`` in a process of its own: an engine, and everything that it leaves behind."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def has_tokenizer(model: str) -> bool:
    """False for a folder of random weights; a name on a hub counts as having one."""
    return not Path(model).is_dir() or (Path(model) / "tokenizer_config.json").is_file()


def start(model: str, plugin: dict[str, Any] | None, **options: Any) -> Any:
    """An in-process ``vllm.LLM`` with blocks of 32 tokens; None: without the plug-in."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    from qm_vllm import QuickMergeConfig, engine_args

    extra = engine_args(QuickMergeConfig(**plugin)) if plugin is not None else {}
    settings = {
        "block_size": BLOCK, "disable_log_stats": True, "kv_cache_memory_bytes": 2 << 30,
        "enable_prefix_caching": False, **machine_options(model),
    }
    return LLM(model, **{**settings, **options, **extra})


def machine_options(model: str) -> dict[str, Any]:
    """Engine options that follow from the model's folder and the device.

    Without weights in the folder, vLLM makes some up: times are those of the shape. On CUDA two
    engines share the device.
    """
    import torch

    here = Path(model)
    bare = here.is_dir() and not any(here.glob("*.safetensors"))
    return {
        "skip_tokenizer_init": not has_tokenizer(model),
        **({"load_format": "dummy"} if bare else {}),
        **({"gpu_memory_utilization": 0.45} if torch.cuda.is_available() else {}),
    }


def prompt_ids(model: str, length: int, number: int = 0) -> list[int]:
    """Prompt ``number``: prose, repeated as often as needed, from a start of its own.

    Random tokens for a model without a tokenizer. Reads the tokenizer on the first call: make
    prompts before the clock starts.
    """
    if not has_tokenizer(model):
        config = json.loads((Path(model) / "config.json").read_text())
        pick = random.Random(number)
        return [pick.randrange(3, config["vocab_size"]) for _ in range(length)]
    ids = _essay(model)
    skip = STRIDE * number % len(ids)
    return (ids * (2 + length // len(ids)))[skip : skip + length]


@functools.cache
def _essay(model: str) -> list[int]:
    from transformers import AutoTokenizer

    from qm_vllm.assets.essay import demo_document

    return list(AutoTokenizer.from_pretrained(model).encode(demo_document().text))


def report_of(output: Any) -> dict[str, Any]:
    """What the plug-in says about a finished request; empty without the plug-in."""
    return (output.kv_transfer_params or {}).get("quickmerge") or {}


def demand_compressed(output: Any) -> None:
    """End the benchmark if the request was not compressed: its figures would be plain vLLM's.

    Raises:
        RuntimeError: it was not.
    """
    said = report_of(output)
    if said.get("status") != "compressed":
        raise RuntimeError(f"request {output.request_id} was not compressed: {said}")


@functools.cache
def facts() -> dict[str, str | int | None]:
    """Machine, date, commit and command line of the first call; of paths only the last part."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "unknown")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"], capture_output=True,
        text=True, check=False, cwd=Path(__file__).parent,
    ).stdout.strip()
    words = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
    import torch

    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        **gpu, "cpu": cpu, "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d"),
        "commit": commit, "command": " ".join([Path(sys.argv[0]).name, *words]),
    }


def table(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a Markdown table."""
    names = list(rows[0])
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for row in rows:
        cells = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())
        print(f"| {' | '.join(cells)} |")


def write(file: Path | None, **content: Any) -> None:
    """Write the facts and the content as JSON, if there is a file to write."""
    if file:
        file.write_text(json.dumps({**facts(), **content}, indent=1) + "\n")
        print(f"written: {file}", file=sys.stderr)


def report(rows: list[dict[str, Any]], file: Path | None, **more: Any) -> None:
    """Print the rows and write them with the facts."""
    table(rows)
    write(file, **more, rows=rows)
