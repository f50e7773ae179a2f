"""Time to first token, plain vLLM against qm_vllm, interleaved runs of two engines.

    python benchmarks/prefill.py --lengths 1024,2048,4096 --ratio 0.33 --json out.json

Each engine lives in a process of its own with equal settings (the plain one without the
plug-in); runs alternate, so that a drift of the machine meets both. TTFT is the wall time of a
one-token request. Prompts are seeded random words; every run has a new prompt, so no cache
can help. ``flop_limit`` counts linear layers only: 1 / (E/L + (1 - E/L) K/N).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

from setting import Child, facts, machine_options, write

PHASES = ("encoder", "saliency", "merge", "upper")


def serve(pipe: Any, options: dict[str, Any], plugin: dict[str, Any] | None) -> None:
    """Child process: one engine, one prompt per message, answers (seconds, report)."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    from qm_vllm import QuickMergeConfig, engine_args

    extra = engine_args(QuickMergeConfig(**plugin)) if plugin is not None else {}
    llm = LLM(**options, **extra)
    params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
    pipe.send("ready")
    while (ids := pipe.recv()) is not None:
        begin = time.perf_counter()
        out = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)[0]
        seconds = time.perf_counter() - begin
        pipe.send((seconds, (out.kv_transfer_params or {}).get("quickmerge")))


def measure(length: int, runs: int, plain: Child, ours: Child, vocab: int) -> dict[str, Any]:
    """One row: medians over interleaved runs."""
    chooser = random.Random(length)
    plain_s, ours_s, reports = [], [], []
    for run in range(runs + 1):
        ids = [chooser.randrange(20, vocab) for _ in range(length)]
        first, second = (plain, ours) if run % 2 else (ours, plain)
        results = {first: first.ask(ids), second: second.ask(ids)}
        if run == 0:
            continue  # warm-up of this length
        report = results[ours][1]
        if report is None or report["status"] != "compressed":
            raise SystemExit(f"the prompt of {length} tokens was not compressed: {report}")
        plain_s.append(results[plain][0])
        ours_s.append(results[ours][0])
        reports.append(report)
    report = reports[0]
    depth = report["encoder_layers"] / report["num_layers"]
    ttft = statistics.median(ours_s)
    row: dict[str, Any] = {
        "n": length,
        "kept": report["kept_tokens"],
        "plain_ttft_s": statistics.median(plain_s),
        "quickmerge_ttft_s": ttft,
        "speedup": statistics.median(p / q for p, q in zip(plain_s, ours_s, strict=True)),
        "flop_limit": 1 / (depth + (1 - depth) * report["kept_tokens"] / length),
        "encoder_layers": report["encoder_layers"],
        "num_layers": report["num_layers"],
    }
    for phase in PHASES:
        spent = statistics.median(r[f"seconds_{phase}"] for r in reports)
        row[f"share_{phase}"] = spent / ttft
    row["share_other"] = 1 - sum(row[f"share_{phase}"] for phase in PHASES)
    return row


def print_table(rows: list[dict[str, Any]]) -> None:
    names = [*rows[0]]
    print(" ".join(f"{name:>17}" for name in names))
    for row in rows:
        cells = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
        print(" ".join(f"{cell:>17}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: the embedded SmolLM2-135M-Instruct")
    parser.add_argument("--lengths", default="1024,2048,4096")
    parser.add_argument("--ratio", type=float, default=0.33)
    parser.add_argument("--encoder-layers", type=int)
    parser.add_argument("--encoder-chunk-tokens", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--kv-gib", type=int, default=1, help="KV cache of each engine, GiB")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    facts()
    lengths = [int(n) for n in args.lengths.split(",")]
    model = args.model
    if model is None:
        from qm_vllm.cli.embedded import ensure_model

        model = str(ensure_model())
    options = {
        "model": model, "dtype": args.dtype, "max_model_len": max(lengths) + 64,
        "max_num_batched_tokens": max(lengths) + 64, "block_size": 32,
        "kv_cache_memory_bytes": args.kv_gib << 30, "enable_prefix_caching": False,
        "enforce_eager": args.enforce_eager, "max_num_seqs": 8, **machine_options(model),
    }
    plugin = {
        "ratio": args.ratio, "min_tokens": 2, "encoder_layers": args.encoder_layers,
        "encoder_chunk_tokens": args.encoder_chunk_tokens,
    }
    plain, ours = Child(serve, options, None), Child(serve, options, plugin)
    vocab = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    rows: list[dict[str, Any]] = []
    for length in lengths:
        rows.append(measure(length, args.runs, plain, ours, vocab))
        write(args.json, model=Path(model).name, dtype=args.dtype, eager=args.enforce_eager,
              ratio=args.ratio, rows=rows)
    plain.stop()
    ours.stop()
    print_table(rows)


if __name__ == "__main__":
    main()
