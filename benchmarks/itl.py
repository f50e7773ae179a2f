"""Inter-token latency of running requests while a long prompt arrives.

    python benchmarks/itl.py --length 8000 --chunks 2048,256 --json itl.json

Short requests decode; after a warm-up the long prompt arrives, and the gaps between their tokens
are taken until it has its first token. Without a long prompt, with plain vLLM's chunked prefill,
and with the plug-in, whose ``encoder_chunk_tokens`` equals the ``max_num_batched_tokens`` of both:
so each may do the same amount of prompt in a step. Before the short requests start, another prompt
of two chunks has run once, so that nothing is done for the first time under the clock.

There are few gaps with large chunks (about one per chunk and request): the 99th percentile of
fewer than 100 gaps is the largest.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

from setting import (
    common_options,
    demand_compressed,
    fill_in,
    in_child,
    prompt_ids,
    report,
    start,
)

SHORT, WARM_UP, QUIET = 32, 20, 60


def measure(
    args: argparse.Namespace, chunk: int, plugin: dict[str, Any] | None
) -> dict[str, Any]:
    """Gaps in seconds of one case, without and with the long prompt, and its TTFT."""
    from vllm import SamplingParams

    model, length = args.model, args.length
    llm = start(
        model, plugin, dtype=args.dtype, max_model_len=length + 64, max_num_batched_tokens=chunk,
        max_num_seqs=args.decoders + 2, enforce_eager=args.enforce_eager,
    )
    engine = llm.llm_engine
    decode = SamplingParams(
        max_tokens=length + 64 - SHORT, temperature=0, ignore_eos=True, detokenize=False,
        extra_args={"qm_enabled": False},
    )
    once = SamplingParams(max_tokens=1, temperature=0, detokenize=False)
    prompt = prompt_ids(model, length)
    warm_up = prompt_ids(model, min(length, 2 * chunk), 1)
    llm.generate([{"prompt_token_ids": warm_up}], once, use_tqdm=False)
    for i in range(args.decoders):
        ids = prompt_ids(model, SHORT, 2 + i)
        engine.add_request(f"short {i}", {"prompt_token_ids": ids}, decode)
    last: dict[str, float] = {}

    def step() -> tuple[list[float], Any]:
        """One engine step: the gaps that ended in it, and the long request's output."""
        outputs = engine.step()
        now, gaps, first = time.perf_counter(), [], None
        for out in outputs:
            if out.request_id == "long":
                first = out
                continue
            if out.finished:
                raise RuntimeError("a short request ended too soon; use a longer --length")
            if out.request_id in last:
                gaps.append(now - last[out.request_id])
            last[out.request_id] = now
        return gaps, first

    for _ in range(WARM_UP):
        step()
    quiet = [gap for _ in range(QUIET) for gap in step()[0]]
    begin = time.perf_counter()
    engine.add_request("long", {"prompt_token_ids": prompt}, once)
    busy: list[float] = []
    first = None
    while first is None:
        gaps, first = step()
        busy += gaps
    ttft = time.perf_counter() - begin
    if plugin is not None:
        demand_compressed(first)
    return {"quiet_s": quiet, "busy_s": busy, "ttft_s": ttft}


def row(name: str, chunk: int, gaps: list[float], ttft: float | None) -> dict[str, Any]:
    """Quantiles in milliseconds (nearest rank)."""
    ordered = sorted(gaps)

    def at(share: float) -> float:
        return 1e3 * ordered[math.ceil(share * len(ordered)) - 1]

    return {
        "case": name, "chunk": chunk, "ITL p50 ms": at(0.5), "ITL p99 ms": at(0.99),
        "ITL max ms": 1e3 * ordered[-1], "gaps": len(ordered),
        "TTFT of the long prompt s": "" if ttft is None else ttft,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=8000, help="of the long prompt")
    parser.add_argument("--chunks", default="2048,256")
    parser.add_argument("--decoders", type=int, default=2, help="short requests")
    common_options(parser)
    args = parser.parse_args()
    fill_in(args)
    rows, raw = [], []
    for chunk in map(int, args.chunks.split(",")):
        ours = {"ratio": args.ratio, "delivery": "inject", "encoder_chunk_tokens": chunk}
        for name, plugin in (("plain vLLM", None), ("quickmerge", ours)):
            got = in_child(measure, args, chunk, plugin)
            raw.append({"case": name, "chunk": chunk, **got})
            rows.append(row(f"{name}, no long prompt", chunk, got["quiet_s"], None))
            rows.append(row(f"{name}, long prompt", chunk, got["busy_s"], got["ttft_s"]))
    report(
        rows, args.json, model=Path(args.model).name, dtype=args.dtype, length=args.length,
        ratio=args.ratio, eager=args.enforce_eager, raw=raw,
    )


if __name__ == "__main__":
    main()
