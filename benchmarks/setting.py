"""What the benchmarks share: the model, one engine per child process, and facts for the record."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def embedded(model: str | None) -> str:
    """The model's folder; the embedded SmolLM2 where none was named."""
    from qm_vllm.cli.embedded import ensure_model

    return model or str(ensure_model())


def in_child(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run ``work`` in a process of its own: an engine, and everything that it leaves behind."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def start(model: str, plugin: dict[str, Any] | None, **options: Any) -> Any:
    """An in-process ``vllm.LLM`` with blocks of 32 tokens; None: without the plug-in."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    from qm_vllm import QuickMergeConfig, engine_args

    extra = engine_args(QuickMergeConfig(**plugin)) if plugin is not None else {}
    settings = {
        "block_size": 32, "enforce_eager": True, "disable_log_stats": True,
        "kv_cache_memory_bytes": 2 << 30, "enable_prefix_caching": False,
    }
    return LLM(model, **{**settings, **options, **extra})


def essay_ids(model: str, length: int, skip: int = 0) -> list[int]:
    """Tokens of real prose, repeated as often as needed, from the given token on."""
    from transformers import AutoTokenizer

    from qm_vllm.cli.document import demo_document

    ids = AutoTokenizer.from_pretrained(model).encode(demo_document().text)
    skip %= len(ids)
    return (ids * (2 + (skip + length) // len(ids)))[skip : skip + length]


def facts() -> dict[str, str | int | None]:
    """Machine, date, commit and command line."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), "unknown",
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    return {
        "cpu": cpu, "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d"),
        "commit": commit, "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def report(rows: list[dict[str, Any]], file: Path | None, **more: Any) -> None:
    """Print the rows as a Markdown table and write them with the facts as JSON."""
    names = list(rows[0])
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for row in rows:
        cells = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())
        print(f"| {' | '.join(cells)} |")
    if file:
        content = {**facts(), **more, "rows": rows}
        file.write_text(json.dumps(content, indent=1) + "\n")
        print(f"written: {file}", file=sys.stderr)
