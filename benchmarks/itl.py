"""Inter-token latency of running requests while a long prompt arrives.

    python benchmarks/itl.py --length 8000 --chunks 2048,256 --json itl.json

Two short requests decode; after a warm-up the long prompt arrives, and the gaps between their
tokens are taken until it has its first token. Without a long prompt, with plain vLLM's chunked
prefill, and with the plug-in, whose ``encoder_chunk_tokens`` equals the ``max_num_batched_tokens``
of both: so each may do the same amount of prompt in a step.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from setting import embedded, essay_ids, in_child, report, start

WARM_UP, QUIET = 10, 60


def measure(
    model: str, dtype: str, length: int, chunk: int, plugin: dict[str, Any] | None, decoders: int
) -> dict[str, Any]:
    """Gaps in seconds of one case, without and with the long prompt, and its TTFT."""
    from vllm import SamplingParams

    llm = start(
        model, plugin, dtype=dtype, max_model_len=length + 64, max_num_batched_tokens=chunk,
        max_num_seqs=8,
    )
    engine = llm.llm_engine
    off = {"qm_enabled": False}
    decode = SamplingParams(
        max_tokens=length, temperature=0, ignore_eos=True, detokenize=False, extra_args=off
    )
    once = SamplingParams(max_tokens=1, temperature=0, detokenize=False)
    for i in range(decoders):
        engine.add_request(f"short {i}", {"prompt_token_ids": essay_ids(model, 32, i)}, decode)
    last: dict[str, float] = {}
    gaps: list[float] = []
    done = False

    def step() -> None:
        nonlocal done
        outputs = engine.step()
        now = time.perf_counter()
        for out in outputs:
            done |= out.request_id == "long"
            if out.request_id in last:
                gaps.append(now - last[out.request_id])
            last[out.request_id] = now

    for _ in range(WARM_UP):
        step()
    gaps.clear()
    for _ in range(QUIET):
        step()
    quiet = list(gaps)
    gaps.clear()
    prompt = essay_ids(model, length)
    begin = time.perf_counter()
    engine.add_request("long", {"prompt_token_ids": prompt}, once)
    while not done:
        step()
    return {"quiet": quiet, "gaps": gaps, "ttft": time.perf_counter() - begin}


def row(name: str, chunk: int, gaps: list[float], ttft: float | None) -> dict[str, Any]:
    """Quantiles in milliseconds."""
    ordered = sorted(gaps)

    def at(share: float) -> float:
        return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return {
        "case": name, "chunk": chunk, "ITL p50 ms": at(0.5), "ITL p99 ms": at(0.99),
        "ITL max ms": 1e3 * ordered[-1], "gaps": len(ordered),
        "TTFT of the long prompt s": "" if ttft is None else ttft,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: the embedded SmolLM2-135M-Instruct")
    parser.add_argument("--length", type=int, default=8000)
    parser.add_argument("--chunks", default="2048,256")
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--decoders", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model, rows = embedded(args.model), []
    for chunk in map(int, args.chunks.split(",")):
        ours = {"ratio": args.ratio, "encoder_chunk_tokens": chunk}
        for name, plugin in (("plain vLLM", None), ("quickmerge", ours)):
            got = in_child(
                measure, model, args.dtype, args.length, chunk, plugin, args.decoders
            )
            rows.append(row(f"{name}, nothing else", chunk, got["quiet"], None))
            rows.append(row(f"{name}, long prompt", chunk, got["gaps"], got["ttft"]))
    report(rows, args.json, model=Path(model).name, dtype=args.dtype, length=args.length)


if __name__ == "__main__":
    main()
