"""Plain vLLM against compressed prompts: one request at a time, and more than the cache holds.

    python benchmarks/serving.py --lengths 256,512,2048 --runs 3 --json serving.json

Low load: two engines, each in a process of its own, get the same prompt one after the other; who
is first alternates from run to run. A pause before each request lets the other process's
threads go to sleep. The first run of each length warms up and does not count. Every run has a
prompt of its own and prefix caching is off, so neither a cache nor the plug-in's memo helps.
Break-even is the length from which the median TTFT is never above plain vLLM's; ``--min-tokens 2``
compresses shorter prompts than the plug-in would, to find it.

Saturation: see ``saturation.py``. Engines take turns there, a new process for each run.

The aims: at saturation 1.5 times plain vLLM's throughput (N = 2,048, 128 output tokens, ratio 0.4),
and at low load never below 0.97.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

from saturation import compare, saturation_options
from setting import Child, common_options, fill_in, prompt_ids, report_of, start, table, write

from qm_vllm_eval.published.stored import break_even

AIM, LOW_AIM = 1.5, 0.97
OUTPUT = 16


def serve(pipe: Any, model: str, plugin: dict[str, Any] | None, options: dict[str, Any]) -> None:
    """Child process: one engine; for every prompt the times and what the plug-in did."""
    llm = start(model, plugin, **options)
    from vllm import SamplingParams

    engine = llm.llm_engine
    params = SamplingParams(max_tokens=OUTPUT, temperature=0, ignore_eos=True, detokenize=False)
    pipe.send("ready")
    for number in itertools.count():
        if (ids := pipe.recv()) is None:
            return
        begin = time.perf_counter()
        engine.add_request(str(number), {"prompt_token_ids": ids}, params)
        ttft, said = 0.0, {}
        while engine.has_unfinished_requests():
            for out in engine.step():
                if out.outputs[0].token_ids:
                    ttft = ttft or time.perf_counter() - begin
                said = report_of(out) if out.finished else said
        total = time.perf_counter() - begin
        pipe.send({
            "ttft_s": ttft, "total_s": total, "status": said.get("status", "plain"),
            "kept": said.get("kept_tokens", len(ids)),
        })


def low_load(args: argparse.Namespace, lengths: list[int]) -> list[dict[str, Any]]:
    """Every counted run: its length, who was first, and both answers."""
    options = {
        "dtype": args.dtype, "max_model_len": max(lengths) + OUTPUT, "max_num_seqs": 4,
        "max_num_batched_tokens": args.chunk, "enforce_eager": args.enforce_eager,
    }
    ours = {
        "ratio": args.ratio, "min_tokens": args.min_tokens, "encoder_chunk_tokens": args.chunk,
    }
    plugins = {"plain": None, "quickmerge": ours}
    engines = {
        name: Child(serve, args.model, plugin, options) for name, plugin in plugins.items()
    }
    numbers, runs = itertools.count(), []
    for length, run in itertools.product(lengths, range(args.runs + 1)):
        ids = prompt_ids(args.model, length, next(numbers))
        order = list(engines)[:: 1 if run % 2 else -1]
        answers = {}
        for name in order:
            answers[name] = engines[name].ask(ids)
        if run:
            runs.append({"n": length, "first": order[0], **answers})
    for engine in engines.values():
        engine.stop()
    return runs


def low_load_row(length: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of one length."""

    def middle(name: str, key: str) -> float:
        return statistics.median(run[name][key] for run in runs)

    plain, ours = middle("plain", "ttft_s"), middle("quickmerge", "ttft_s")
    faster = sum(run["quickmerge"]["ttft_s"] <= run["plain"]["ttft_s"] for run in runs)
    return {
        "N": length, "kept": runs[0]["quickmerge"]["kept"],
        "status": ", ".join(sorted({run["quickmerge"]["status"] for run in runs})),
        "plain TTFT s": plain, "quickmerge TTFT s": ours, "plain / quickmerge": plain / ours,
        "runs not slower": f"{faster} of {len(runs)}",
        "plain total s": middle("plain", "total_s"),
        "quickmerge total s": middle("quickmerge", "total_s"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="128,256,512,1024,2048,4096", help="at low load")
    parser.add_argument("--runs", type=int, default=3, help="of each length, and at saturation")
    parser.add_argument("--min-tokens", type=int, default=256, help="at low load")
    parser.add_argument("--only", choices=("low", "saturation"), help="one of the two parts")
    saturation_options(parser)
    common_options(parser)
    args = parser.parse_args()
    fill_in(args)
    lengths = sorted(int(n) for n in args.lengths.split(","))
    content: dict[str, Any] = {
        "model": Path(args.model).name, "dtype": args.dtype, "eager": args.enforce_eager,
        "ratio": args.ratio, "chunk": args.chunk, "min_tokens": args.min_tokens,
    }
    if args.only != "saturation":
        runs = low_load(args, lengths)
        rows = [low_load_row(n, [run for run in runs if run["n"] == n]) for n in lengths]
        even = break_even(
            lengths, [row["plain TTFT s"] for row in rows],
            [row["quickmerge TTFT s"] for row in rows],
        )
        table(rows)
        if even is None:
            said = f"above {lengths[-1]} tokens, the longest prompt here"
        elif even <= lengths[0]:
            said = f"at or below {lengths[0]} tokens, the shortest prompt here"
        else:
            said = f"{even:.0f} tokens"
        lowest = min(row["plain / quickmerge"] for row in rows)
        print(f"\nbreak-even of the time to first token: {said}")
        print(f"at low load never below {lowest:.2f} (aim {LOW_AIM}): {lowest >= LOW_AIM}\n")
        content |= {"low_load": rows, "break_even_tokens": even, "break_even": said, "runs": runs}
    if args.only != "low":
        rows, taken = compare(args)
        table(rows)
        factor = rows[1]["requests/s"] / rows[0]["requests/s"]
        print(f"\n{factor:.2f} times plain vLLM (aim {AIM}): {factor >= AIM}")
        content |= {"saturation": rows, "saturation_seconds": taken}
    write(args.json, **content)


if __name__ == "__main__":
    main()
