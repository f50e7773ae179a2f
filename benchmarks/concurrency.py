"""How many requests run at once in a fixed KV cache, plain and compressed.

    python benchmarks/concurrency.py --length 2048 --ratio 0.4 --json concurrency.json

The cache holds ``--fit`` plain requests to the block. Twice as many as could fit are added, and the
most that hold all their prompt in one step are counted, leaving out every request that was ever
preempted: room that had to be taken back does not make the figure up. Each request generates 31
tokens: as K - 1 fills whole blocks, these end with the last block of a compressed request, and
they are enough for requests that are admitted some steps apart to overlap. So the count is one of
prompts, not of outputs. "blocks allow" is what whole blocks leave room for: with a small
``--fit`` or ``--length`` that alone can be below N / K. Exit code 1 below 0.95 N / K.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from setting import BLOCK, embedded, facts, in_child, prompt_ids, report, start

from qm_vllm_eval.serving.tiny_model import make_tiny_model

TOKENS = BLOCK - 1
ENOUGH = 0.95


def peak(
    model: str, args: argparse.Namespace, blocks: int, plugin: dict[str, Any] | None, requests: int
) -> dict[str, Any]:
    """The most requests that held their whole prompt in one step, its length, preemptions."""
    from vllm import SamplingParams

    length = args.length
    llm = start(
        model, plugin, dtype=args.dtype, max_model_len=length + TOKENS, max_num_seqs=requests,
        max_num_batched_tokens=args.step_prompts * length, num_gpu_blocks_override=blocks,
        enforce_eager=True,
    )
    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    params = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True, detokenize=False)
    for i in range(requests):
        engine.add_request(str(i), {"prompt_token_ids": prompt_ids(model, length, i)}, params)
    steps: list[set[str]] = []
    kept: set[int] = set()
    preemptions: dict[str, int] = {}
    while engine.has_unfinished_requests():
        engine.step()
        held = [r for r in scheduler.running if r.num_computed_tokens >= r.num_prompt_tokens]
        steps.append({r.request_id for r in held})
        kept.update(r.num_prompt_tokens for r in held)
        for request in scheduler.requests.values():
            if request.num_preemptions:
                preemptions[request.request_id] = request.num_preemptions
    if len(kept) != 1:
        raise RuntimeError(f"prompts of equal length hold {sorted(kept)} tokens")
    counts = [len(ids - preemptions.keys()) for ids in steps]
    return {
        "peak": max(counts), "kept": kept.pop(), "preemptions": sum(preemptions.values()),
        "per_step": counts,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", help="default: a small random decoder (blocks do not care); smollm2: embedded"
    )
    parser.add_argument("--length", type=int, default=2048, help="N")
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--fit", type=int, default=10, help="plain requests that fit")
    parser.add_argument(
        "--step-prompts", type=int, default=16, help="prompts that a step may work on"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    facts()
    blocks = args.fit * -(-(args.length + TOKENS) // BLOCK) + 1  # vLLM keeps one for itself
    requests = int(2 * args.fit / args.ratio)
    ours = {
        "ratio": args.ratio, "min_tokens": 2, "max_live_jobs": requests,
        "encoder_chunk_tokens": args.step_prompts * args.length,
        "max_source_tokens": requests * args.length,
    }
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or str(make_tiny_model(Path(folder), 512))
        model = embedded(None) if model == "smollm2" else model
        name = "random llama of six layers" if args.model is None else Path(model).name
        plain = in_child(peak, model, args, blocks, None, requests)
        compressed = in_child(peak, model, args, blocks, ours, requests)
    factor, ideal = compressed["peak"] / plain["peak"], args.length / compressed["kept"]
    rows = [
        {"case": case, "N": args.length, "K": got["kept"], "at once": got["peak"],
         "blocks allow": (blocks - 1) // -(-(got["kept"] + TOKENS) // BLOCK),
         "preemptions": got["preemptions"], "factor": got["peak"] / plain["peak"],
         "N / K": args.length / got["kept"]}
        for case, got in (("plain vLLM", plain), ("quickmerge", compressed))
    ]
    print(f"{name}, {requests} requests, {blocks} KV blocks of {BLOCK} tokens\n")
    report(
        rows, args.json, model=name, dtype=args.dtype, kv_blocks=blocks, requests=requests,
        of_ideal=factor / ideal, raw={"plain": plain, "quickmerge": compressed},
    )
    print(f"\nfactor / (N / K) = {factor / ideal:.3f}")
    return int(factor < ENOUGH * ideal)


if __name__ == "__main__":
    raise SystemExit(main())
