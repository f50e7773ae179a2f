"""Throughput with more requests than the KV cache holds, plain and compressed.

    python benchmarks/saturation.py --requests 16 --fit 4 --length 2048 --output 64

All requests arrive at once; the cache holds ``--fit`` plain ones. Engines take turns, each in a new
process, and every request of a run has its own prompt.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from setting import embedded, essay_ids, in_child, report, start


def seconds(
    model: str, dtype: str, plugin: dict[str, Any] | None, args: argparse.Namespace, run: int
) -> float:
    """Wall time of all requests, after a warm-up."""
    from vllm import SamplingParams

    blocks = args.fit * -(-(args.length + args.output) // 32) + 1
    llm = start(
        model, plugin, dtype=dtype, max_model_len=args.length + args.output,
        num_gpu_blocks_override=blocks, max_num_seqs=args.requests,
    )

    def ask(prompts: list[list[int]]) -> None:
        params = SamplingParams(
            max_tokens=args.output, temperature=0, ignore_eos=True, detokenize=False
        )
        llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)

    ask([essay_ids(model, 300, 7)])
    prompts = [
        essay_ids(model, args.length, 97 * (i + run * args.requests)) for i in range(args.requests)
    ]
    begin = time.perf_counter()
    ask(prompts)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: the embedded SmolLM2-135M-Instruct")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--fit", type=int, default=4, help="plain requests that the cache holds")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = embedded(args.model)
    cases: dict[str, dict[str, Any] | None] = {
        "plain vLLM": None, "quickmerge": {"ratio": args.ratio},
    }
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for run in range(args.runs):
        for name in list(cases)[:: 1 if run % 2 else -1]:
            taken[name].append(in_child(seconds, model, args.dtype, cases[name], args, run))
    rows = []
    for name, spent in taken.items():
        middle = statistics.median(spent)
        rows.append({
            "case": name, "runs": len(spent), "seconds": middle, "fastest": min(spent),
            "slowest": max(spent), "requests/s": args.requests / middle,
            "prompt tokens/s": args.requests * args.length / middle,
            "output tokens/s": args.requests * args.output / middle,
        })
    report(rows, args.json, model=Path(model).name, dtype=args.dtype)


if __name__ == "__main__":
    main()
