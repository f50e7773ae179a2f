"""Throughput with more requests than the KV cache holds, plain and compressed.

    python benchmarks/saturation.py --requests 16 --fit 4 --length 2048 --output 128

All requests arrive at once; the cache holds ``--fit`` plain ones. Engines take turns, each in a new
process, and every request of a run has its own prompt.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from setting import (
    BLOCK,
    common_options,
    demand_compressed,
    fill_in,
    in_child,
    prompt_ids,
    report,
    start,
)


def seconds(plugin: dict[str, Any] | None, args: argparse.Namespace, run: int) -> float:
    """Wall time of all requests, after a warm-up."""
    from vllm import SamplingParams

    blocks = args.fit * -(-(args.length + args.output) // BLOCK) + 1
    llm = start(
        args.model, plugin, dtype=args.dtype, max_model_len=args.length + args.output,
        num_gpu_blocks_override=blocks, max_num_seqs=args.requests,
        max_num_batched_tokens=args.chunk, enforce_eager=args.enforce_eager,
    )

    def ask(prompts: list[list[int]]) -> None:
        params = SamplingParams(
            max_tokens=args.output, temperature=0, ignore_eos=True, detokenize=False
        )
        answers = llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False
        )
        if plugin is not None:
            for answer in answers:
                demand_compressed(answer)

    first = run * (args.requests + 1)
    prompts = [
        prompt_ids(args.model, args.length, first + i) for i in range(args.requests + 1)
    ]
    ask(prompts[:1])
    begin = time.perf_counter()
    ask(prompts[1:])
    return time.perf_counter() - begin


def compare(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """The table's rows, and the seconds of every run."""
    ours = {"ratio": args.ratio, "min_tokens": 2, "encoder_chunk_tokens": args.chunk,
            "delivery": "inject"}
    cases: dict[str, dict[str, Any] | None] = {"plain vLLM": None, "quickmerge": ours}
    if args.native:
        cases["native"] = {**ours, "delivery": "native"}
    if args.encoder_batch:
        cases["quickmerge, shared passes"] = {**ours, "encoder_batch": True}
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for run in range(args.runs):
        for name in list(cases)[:: -1 if run % 2 else 1]:
            taken[name].append(in_child(seconds, cases[name], args, run))
    rows = []
    for name, spent in taken.items():
        middle = statistics.median(spent)
        rows.append({
            "case": name, "runs": len(spent), "seconds": middle, "fastest": min(spent),
            "slowest": max(spent), "requests/s": args.requests / middle,
            "prompt tokens/s": args.requests * args.length / middle,
            "output tokens/s": args.requests * args.output / middle,
        })
    return rows, taken


def saturation_options(parser: argparse.ArgumentParser) -> None:
    """The load and the size of the cache."""
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--fit", type=int, default=4, help="plain requests that the cache holds")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=2048, help="prompt tokens of one step")
    parser.add_argument("--native", action="store_true", help="the native delivery, too")
    parser.add_argument("--encoder-batch", action="store_true", help="with and without it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    saturation_options(parser)
    parser.add_argument("--runs", type=int, default=2)
    common_options(parser)
    args = parser.parse_args()
    fill_in(args)
    rows, taken = compare(args)
    report(
        rows, args.json, model=Path(args.model).name, dtype=args.dtype, eager=args.enforce_eager,
        seconds=taken,
    )


if __name__ == "__main__":
    main()
