"""How many requests run at once in a fixed KV cache, plain and compressed.

    python benchmarks/concurrency.py --length 2048 --ratio 0.4 --json concurrency.json

The cache holds ``--fit`` plain requests to the block. Twice as many as could fit are added, and the
most that hold all their prompt in one step are counted. Each may generate only what its last
block has room for (31 tokens, as K - 1 fills whole blocks; the plain prompt is cut alike), so
that the count is one of prompts, not of outputs. Exit code 1 below 0.95 N / K.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from setting import in_child, report, start

BLOCK, TOKENS = 32, 31


def peak(
    model: str, length: int, blocks: int, plugin: dict[str, Any] | None, requests: int
) -> dict[str, int]:
    """The most requests that held their whole prompt in one step, its length, preemptions."""
    import random

    from vllm import SamplingParams

    llm = start(
        model, plugin, dtype="float32", max_model_len=length + TOKENS, max_num_seqs=requests,
        max_num_batched_tokens=16 * length, num_gpu_blocks_override=blocks,
        skip_tokenizer_init=True,
    )
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    params = SamplingParams(
        max_tokens=TOKENS, temperature=0, ignore_eos=True, detokenize=False
    )
    pick = random.Random(0)
    for i in range(requests):
        ids = [pick.randrange(3, 500) for _ in range(length)]
        llm.llm_engine.add_request(str(i), {"prompt_token_ids": ids}, params)
    most = preempted = 0
    kept = set()
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        held = [r for r in scheduler.running if r.num_computed_tokens >= r.num_prompt_tokens]
        most = max(most, len(held))
        kept.update(r.num_prompt_tokens for r in held)
        preempted = max(preempted, *(r.num_preemptions for r in scheduler.running), 0)
    assert len(kept) == 1, kept
    return {"peak": most, "kept": kept.pop(), "preempted": preempted}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: a small random decoder (blocks do not care)")
    parser.add_argument("--length", type=int, default=2048, help="N, a multiple of 32")
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--fit", type=int, default=10, help="plain requests that fit")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    length = args.length // BLOCK * BLOCK + 1  # room for TOKENS more in its last block
    blocks = args.fit * (length // BLOCK + 1) + 1  # vLLM keeps one block for itself
    requests = int(2 * args.fit / args.ratio)
    ours = {"ratio": args.ratio, "max_live_jobs": requests, "encoder_chunk_tokens": 16 * length}
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or tiny(Path(folder))
        plain = in_child(peak, model, length, blocks, None, requests)
        compressed = in_child(peak, model, length, blocks, ours, requests)
    factor, ideal = compressed["peak"] / plain["peak"], length / compressed["kept"]
    rows = [
        {"case": "plain vLLM", "N": length, "K": plain["kept"], "at once": plain["peak"],
         "preemptions": plain["preempted"], "factor": 1.0, "N / K": 1.0},
        {"case": "quickmerge", "N": length, "K": compressed["kept"],
         "at once": compressed["peak"], "preemptions": compressed["preempted"],
         "factor": factor, "N / K": ideal},
    ]
    report(rows, args.json, kv_blocks=blocks, model=Path(args.model or "small random").name)
    print(f"factor / (N / K) = {factor / ideal:.3f}")
    return int(factor < 0.95 * ideal)


def tiny(folder: Path) -> str:
    """A random decoder of six narrow layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8192,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    raise SystemExit(main())
