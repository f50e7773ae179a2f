"""Memory that a compression job takes beside the KV cache, at its peak.

    python benchmarks/memory.py --lengths 1024,2048,4096,8192 --json memory.json

For each length one engine with the plug-in and one without, each in a process of its own; one
request of one token. On a CPU the figure is the process's resident set: its peak during the
request over what the idle engine held after a short first request, when the C library had given
back what it had free. What the library keeps for later counts. On CUDA it is torch's allocator.
``job`` is the engine's with the plug-in, ``plain`` that of plain vLLM, whose activations a job
needs as well. The bound: E/L of the plain KV of N tokens, and 256 MiB.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
from pathlib import Path
from typing import Any

import torch
from setting import (
    common_options,
    demand_compressed,
    fill_in,
    in_child,
    prompt_ids,
    report,
    report_of,
    start,
)

from qm_vllm_eval.published.stored import slope

MIB = 1 << 20
ROOM = 256 * MIB


def level(name: str) -> int:
    """A line of the process's status in bytes: VmRSS now, VmHWM at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"no {name} in /proc/self/status")


def held() -> int:
    """Bytes in use now."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else level("VmRSS")


def reset() -> None:
    """Let the peak begin anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Most bytes in use since the last reset."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else level("VmHWM")


def measure(
    args: argparse.Namespace, length: int, plugin: dict[str, Any] | None
) -> dict[str, Any]:
    """The peak over the idle engine, bytes, and the job's report."""
    from vllm import SamplingParams

    first, ids = (prompt_ids(args.model, n, n) for n in (256, length))
    llm = start(
        args.model, plugin, dtype=args.dtype, max_model_len=length + 16, max_num_seqs=2,
        max_num_batched_tokens=args.chunk, enforce_eager=args.enforce_eager,
        kv_cache_memory_bytes=args.kv_gib << 30,
    )
    params = SamplingParams(max_tokens=1, temperature=0, detokenize=False)

    def ask(ids: list[int]) -> Any:
        (out,) = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
        if plugin is not None:
            demand_compressed(out)
        return out

    ask(first)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    idle = held()
    reset()
    said = report_of(ask(ids))
    return {"peak": peak() - idle, "report": said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="1024,2048,4096,8192")
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--kv-gib", type=int, default=1)
    common_options(parser)
    args = parser.parse_args()
    fill_in(args)
    lengths = sorted(int(n) for n in args.lengths.split(","))
    ours = {"ratio": args.ratio, "min_tokens": 2, "delivery": "inject",
            "encoder_chunk_tokens": args.chunk}
    config = json.loads((Path(args.model) / "config.json").read_text())
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    token = 2 * layers * config["num_key_value_heads"] * head * getattr(torch, args.dtype).itemsize
    rows = []
    for n in lengths:
        one, job = (in_child(measure, args, n, plugin) for plugin in (None, ours))
        said = job["report"]
        share = token * n * said["encoder_layers"] // layers
        rows.append({
            "N": n, "K": said["kept_tokens"], "job MiB": job["peak"] / MIB,
            "plain MiB": one["peak"] / MIB, "E/L of plain KV MiB": share / MIB,
            "bound MiB": (share + ROOM) / MIB, "within": job["peak"] <= share + ROOM,
        })
    slopes = {
        name: slope(lengths, [max(row[f"{name} MiB"], 1e-3) for row in rows])
        for name in ("job", "plain")
    }
    report(
        rows, args.json, model=Path(args.model).name, dtype=args.dtype, chunk=args.chunk,
        ratio=args.ratio, eager=args.enforce_eager, slopes=slopes,
    )
    if not math.isnan(slopes["job"]):
        print(f"\nexponent of N: job {slopes['job']:.2f}, plain {slopes['plain']:.2f}")


if __name__ == "__main__":
    main()
