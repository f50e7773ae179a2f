"""Time to first token, plain vLLM against qm_vllm, interleaved runs of two engines.

    python benchmarks/prefill.py --lengths 1024,2048,4096,8192 --json out.json
    python benchmarks/prefill.py --lengths 2048 --ratio 0.2,0.33,0.5 --encoder-layers 12,20

Each engine lives in a process of its own with equal settings (the plain one without the
plug-in); runs alternate, so that a drift of the machine meets both. TTFT is the wall time of a
one-token request. Prompts are seeded random words; every run has a new prompt, so no cache
can help. ``flop_limit`` counts linear layers only: 1 / (E/L + (1 - E/L) K/N). ``work_limit``
counts attention too, which the upper layers save almost all of: it is the one to measure by.
``scoring_of_plain`` is saliency and merge over the plain TTFT.

The default aims: 0.9 of ``work_limit`` from 4,096 tokens on, and 0.05 for scoring and merging.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

from setting import Child, facts, machine_options, table, write

from qm_vllm import request_args

PHASES = ("encoder", "saliency", "merge", "upper")


def serve(pipe: Any, options: dict[str, Any], plugin: dict[str, Any] | None) -> None:
    """Child process: one engine, one prompt per message, answers (seconds, report)."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    from qm_vllm import QuickMergeConfig, engine_args

    extra = engine_args(QuickMergeConfig(**plugin)) if plugin is not None else {}
    llm = LLM(**options, **extra)
    pipe.send("ready")
    while (message := pipe.recv()) is not None:
        ids, asked = message
        params = SamplingParams(
            max_tokens=1, temperature=0.0, detokenize=False, extra_args=asked if plugin else None
        )
        begin = time.perf_counter()
        out = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)[0]
        seconds = time.perf_counter() - begin
        pipe.send((seconds, (out.kv_transfer_params or {}).get("quickmerge")))


def measure(
    args: argparse.Namespace, length: int, asked: dict[str, Any], plain: Child, ours: Child,
    config: dict[str, Any],
) -> dict[str, Any]:
    """One row: medians over interleaved runs of prompts of ``length`` with these options."""
    chooser = random.Random(length)
    plain_s, ours_s, reports = [], [], []
    for run in range(args.runs + 1):
        size = length if run else args.warm_up or length
        ids = [chooser.randrange(20, config["vocab_size"]) for _ in range(size)]
        first, second = (plain, ours) if run % 2 else (ours, plain)
        results = {first: first.ask((ids, asked)), second: second.ask((ids, asked))}
        if run == 0:
            continue
        report = results[ours][1]
        if report is None or report["status"] != "compressed":
            raise SystemExit(f"the prompt of {length} tokens was not compressed: {report}")
        plain_s.append(results[plain][0])
        ours_s.append(results[ours][0])
        reports.append(report)
    report = reports[0]
    depth, kept = report["encoder_layers"] / report["num_layers"], report["kept_tokens"]
    upper = layer_flops(config, kept) / layer_flops(config, length)
    ttft, plain_ttft = statistics.median(ours_s), statistics.median(plain_s)
    speedups = [p / q for p, q in zip(plain_s, ours_s, strict=True)]
    row: dict[str, Any] = {
        "n": length,
        "kept": kept,
        "plain_ttft_s": plain_ttft,
        "quickmerge_ttft_s": ttft,
        "speedup": statistics.median(speedups),
        "flop_limit": 1 / (depth + (1 - depth) * kept / length),
        "work_limit": 1 / (depth + (1 - depth) * upper),
        "encoder_layers": report["encoder_layers"],
        "num_layers": report["num_layers"],
    }
    for phase in PHASES:
        spent = statistics.median(r[f"seconds_{phase}"] for r in reports)
        row[f"share_{phase}"] = spent / ttft
    row["share_other"] = 1 - sum(row[f"share_{phase}"] for phase in PHASES)
    row["of_limit"] = row["speedup"] / row["work_limit"]
    scored = row["share_saliency"] + row["share_merge"]
    row["scoring_of_plain"] = scored * ttft / plain_ttft
    row["runs"] = {"plain_s": plain_s, "quickmerge_s": ours_s, "speedup": speedups}
    return row


def layer_flops(config: dict[str, Any], rows: int) -> float:
    """FLOPs of one decoder layer over ``rows`` tokens: linear layers and causal attention."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or width // heads
    weights = width * head * (2 * heads + 2 * kv) + 3 * width * inner
    return 2.0 * rows * weights + 2.0 * rows * rows * heads * head


def print_table(rows: list[dict[str, Any]]) -> None:
    table([{name: value for name, value in row.items() if name != "runs"} for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: the embedded SmolLM2-135M-Instruct")
    parser.add_argument("--lengths", default="1024,2048,4096")
    parser.add_argument("--ratio", default="0.33", help="one or several")
    parser.add_argument("--encoder-layers", help="one or several; default: the plug-in's")
    parser.add_argument("--encoder-chunk-tokens", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--warm-up", type=int, help="tokens of the first run, not counted")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--kv-gib", type=int, default=1, help="KV cache of each engine, GiB")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    facts()
    lengths = [int(n) for n in args.lengths.split(",")]
    ratios = [float(x) for x in args.ratio.split(",")]
    depths = [int(x) for x in args.encoder_layers.split(",")] if args.encoder_layers else [None]
    model = args.model
    if model is None:
        from qm_vllm.assets.embedded import ensure_model

        model = str(ensure_model())
    options = {
        "model": model, "dtype": args.dtype, "max_model_len": max(lengths) + 64,
        "max_num_batched_tokens": max(lengths) + 64, "block_size": 32,
        "kv_cache_memory_bytes": args.kv_gib << 30, "enable_prefix_caching": False,
        "enforce_eager": args.enforce_eager, "max_num_seqs": 8, **machine_options(model),
    }
    plugin = {
        "ratio": ratios[0], "min_tokens": 2, "delivery": "inject",
        "encoder_chunk_tokens": args.encoder_chunk_tokens,
    }
    plain, ours = Child(serve, options, None), Child(serve, options, plugin)
    config = json.loads((Path(model) / "config.json").read_text())
    rows: list[dict[str, Any]] = []
    for length, ratio, depth in itertools.product(lengths, ratios, depths):
        asked = request_args(
            ratio=ratio, **({} if depth is None else {"encoder_layers": depth})
        )
        row = measure(args, length, asked, plain, ours, config)
        rows.append({"ratio": ratio, **row})
        write(args.json, model=Path(model).name, dtype=args.dtype, eager=args.enforce_eager,
              ratio=ratios[0], rows=rows)
    plain.stop()
    ours.stop()
    print_table(rows)


if __name__ == "__main__":
    main()
