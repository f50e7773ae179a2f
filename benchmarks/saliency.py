"""What scoring costs: each entropy and the ``query`` score over N, D and dtype, beside the floor.

    python benchmarks/saliency.py --lengths 512,1024,2048,4096 --widths 64,576 --json saliency.json

Entropies: ``tiles`` is what the library runs (on CUDA with half precision: one Triton kernel),
``lse`` one flash-attention call for narrow rows, ``raw`` eq. 1-2 to the letter in float64. Their
floor is half of the N x N matrix of products at the machine's GEMM rate, or the states read once.

``query``: two layers' softmax weights of the last 64 queries and the score made of them; heads as
in SmolLM2 (9, of them 3 with keys, of 64). Its floor is those products, or the keys read once.

``slope`` is that of a straight line through the logarithms of time and N.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from floor import measure_floor, seconds
from setting import facts, table, write

from qm_vllm_eval.published.stored import slope

SCALE = 24.0
HEADS, KV_HEADS, HEAD, WINDOW, LAYERS = 9, 3, 64, 64, 2
RAW_LIMIT, LSE_WIDTH = 4096, 256


def query_score(length: int, dtype: torch.dtype, device: str) -> Callable[[], Any]:
    """The score of one prompt as a job computes it, from queries and keys of two layers."""
    from qm_vllm import QuickMergeConfig
    from qm_vllm.compress import Evidence, score_tokens
    from qm_vllm.engine.dense.runner import DenseRunner, LayerRecord

    attn = SimpleNamespace(
        num_heads=HEADS, num_kv_heads=KV_HEADS, head_size=HEAD,
        scale=HEAD**-0.5,
    )
    view: Any = SimpleNamespace(layers=[SimpleNamespace(attn=attn)] * LAYERS)
    runner = DenseRunner(view, dtype, torch.device(device), 2048)
    records = []
    for _ in range(LAYERS):
        record = LayerRecord()
        record.rotated_keys = torch.randn(length, KV_HEADS, HEAD, device=device).to(dtype)
        record.queries = torch.randn(WINDOW, HEADS, HEAD, device=device).to(dtype)
        records.append(record)

    def work() -> None:
        seen = [runner.window_attention(i, record) for i, record in enumerate(records)]
        score_tokens(Evidence(length, attention=seen), QuickMergeConfig(saliency="query"))

    return work


def entropies(width: int, dtype: str) -> dict[str, Callable[[torch.Tensor], Any]]:
    """The implementations that take rows of this width and type."""
    from qm_vllm.compress import attention_entropy, attention_entropy_lse

    found = {"tiles": lambda x: attention_entropy(x, SCALE)}
    if width <= LSE_WIDTH and dtype == "float32":
        found["lse"] = lambda x: attention_entropy_lse(x, SCALE)
    if dtype == "float32":
        found["raw"] = lambda x: attention_entropy(x, SCALE, normalize_rows=False)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="512,1024,2048,4096,8192")
    parser.add_argument("--query-lengths", default="1024,2048,4096,8192,16384,32768")
    parser.add_argument("--widths", default="64,576")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    facts()
    lengths, longer, widths = (
        [int(n) for n in text.split(",")]
        for text in (args.lengths, args.query_lengths, args.widths)
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: list[dict[str, Any]] = []
    machines = []

    def measure(
        what: str, n: int, d: int, dtype: str, work: Callable[[], Any], least: float
    ) -> None:
        taken = seconds(work, args.runs)
        middle = statistics.median(taken)
        rows.append({
            "score": what, "N": n, "D": d, "dtype": dtype, "ms": 1e3 * middle,
            "fastest": 1e3 * min(taken), "slowest": 1e3 * max(taken), "floor ms": 1e3 * least,
            "times the floor": middle / least,
        })

    with torch.inference_mode():
        for dtype in args.dtypes.split(","):
            machine, kind = measure_floor(dtype), getattr(torch, dtype)
            machines.append(machine.facts())
            for width in widths:
                for name, entropy in entropies(width, dtype).items():
                    for n in lengths:
                        if name == "raw" and n > RAW_LIMIT:
                            continue
                        states = torch.randn(n, width, device=device).to(kind)
                        least = machine.seconds(n * n * width, states.nbytes)
                        measure(name, n, width, dtype, lambda e=entropy, x=states: e(x), least)
            for n in longer:
                flops = LAYERS * 2 * WINDOW * n * HEADS * HEAD
                least = machine.seconds(flops, LAYERS * n * KV_HEADS * HEAD * kind.itemsize)
                measure("query", n, HEAD, dtype, query_score(n, kind, device), least)
    slopes = []
    for key in dict.fromkeys((r["score"], r["D"], r["dtype"]) for r in rows):
        same = [r for r in rows if (r["score"], r["D"], r["dtype"]) == key]
        slopes.append({
            "score": key[0], "D": key[1], "dtype": key[2], "from N": same[0]["N"],
            "to N": same[-1]["N"], "slope": slope([r["N"] for r in same], [r["ms"] for r in same]),
        })
    table(rows)
    print()
    table(slopes)
    write(args.json, floor=machines, device=device, threads=torch.get_num_threads(), rows=rows,
          slopes=slopes)


if __name__ == "__main__":
    main()
