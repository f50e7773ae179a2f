"""Time to first token by the prompt's length: plain vLLM, both deliveries of KV, the default.

    python benchmarks/first_token.py --json first_token.json
    python benchmarks/first_token.py --lengths 512,2048 --runs 5 --answer 8

The engines are those of ``turns.py``: plain, in-model, native and ``auto``, the default, each in a
process of its own, with prefix caching. Each prompt is new, random, and alone. Runs take turns and
rotate; ``ttft / plain`` is the median of own / plain of the same run, ``lowest``, ``highest`` its
range. TTFT is the wall time from adding a request to its first token, of an answer of ``--answer``
tokens; ``answer / plain`` compares the whole request.

The aim of ``delivery="auto"`` is 1.03 or less at every length.
"""

from __future__ import annotations

import argparse
import random
import statistics
from pathlib import Path
from typing import Any

from setting import Child, common_options, fill_in, report
from turns import Session, demand_all_compressed, start_ways, ways_option


def measure(
    args: argparse.Namespace, length: int, children: dict[str, Child], vocabulary: int
) -> list[dict[str, Any]]:
    """One row for each way."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in children}
    for run in range(args.runs):
        chooser = random.Random(f"{length} {run}")
        session = Session([], [[chooser.randrange(20, vocabulary) for _ in range(length)]])
        first = run % len(children)
        for way in [*list(children)[first:], *list(children)[:first]]:
            taken = children[way].ask(session)
            demand_all_compressed(way, taken)
            found[way] += taken
    rows = []
    for way, taken in found.items():
        ratios, whole = (
            [own[name] / plain[name] for own, plain in zip(taken, found["plain"], strict=True)]
            for name in ("ttft_s", "seconds")
        )
        seconds = [one["ttft_s"] for one in taken]
        job = [one["report"].get("seconds", 0.0) for one in taken]
        rows.append({
            "N": length, "way": way, "kept": taken[-1]["kept_tokens"],
            "ttft_s": statistics.median(seconds), "fastest_s": min(seconds),
            "slowest_s": max(seconds), "ttft / plain": statistics.median(ratios),
            "lowest": min(ratios), "highest": max(ratios), "job_s": statistics.median(job),
            "answer / plain": statistics.median(whole),
        })
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="256,512,1024,2048,4096")
    parser.add_argument("--answer", type=int, default=16, help="tokens, at least 2")
    parser.add_argument("--runs", type=int, default=3)
    ways_option(parser)
    parser.add_argument("--chunk", type=int, default=2048, help="prompt tokens of one step")
    parser.add_argument("--kv-gib", type=float, default=1.0, help="KV cache of each engine, GiB")
    common_options(parser)
    args = parser.parse_args()
    fill_in(args)
    lengths = [int(one) for one in args.lengths.split(",")]
    options, children, vocabulary = start_ways(args, max(lengths) + args.answer)
    for length in (min(lengths), min(max(lengths), 1024)):  # not counted
        chooser = random.Random("warm-up")
        ids = [chooser.randrange(20, vocabulary) for _ in range(length)]
        for way, child in children.items():
            demand_all_compressed(way, child.ask(Session([], [ids])))
    rows = [row for one in lengths for row in measure(args, one, children, vocabulary)]
    for child in children.values():
        child.stop()
    report(
        rows, args.json, model=Path(args.model).name, dtype=args.dtype, eager=args.enforce_eager,
        ratio=args.ratio, options=options,
    )


if __name__ == "__main__":
    main()
