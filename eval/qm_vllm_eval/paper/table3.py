"""Table 3 of the paper, measured in vLLM: decoding latency, KV memory, tokens, preprocessing.

    python -m qm_vllm_eval.paper.table3 --scale small --json table3.json

The paper: batch 32 on an A100, 128 tokens -> 54, latency 6.3 -> 4.1 ms, KV memory 1120 -> 412 MB,
"+1.6 ms" of preprocessing. Here, in the same form: its own set-up (an AR prior over encoder
states), and a language model served with and without the plug-in. The two methods take turns in
one run, after a warm-up; one engine computes at a time.

The columns of a row: "latency" is the median time of a step in which every request of the batch
decodes one token. "ttft" is the mean time from the batch's arrival to a request's first token.
"preprocessing" is saliency and merge of the whole batch; the encoder's time stands apart (in the
served model it is part of the prefill, E of L layers over all N tokens; "upper" the rest over K).
"kv_mb" are the blocks that were held at the peak, in 10^6 bytes; "kv_mb_positions" the positions
K + generated - 1 of each request without rounding to blocks; "kv_mb_prompt" the K alone.
Of each time there is the median over runs, the smallest and the largest; changes in per cent are
those of pairs of runs, one of each method.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

from qm_vllm_eval.paper.table3_engine import Run, Table3Settings
from qm_vllm_eval.paper.table3_prior import PriorBench
from qm_vllm_eval.paper.table3_process import Child
from qm_vllm_eval.paper.table3_served import METHODS, ServedBench, alternating, named_model

SMALL = Table3Settings()
SMOKE = replace(
    SMALL, name="smoke", prior=(2, 128, 2), served=(), generated=8, repeats=2, enforce_eager=True
)
MEDIUM = replace(SMALL, name="medium", served=((128, 32), (2048, 4), (4096, 2), (8000, 1)))
FULL = replace(
    SMALL, name="full", served=((128, 32), (2048, 32), (4096, 16), (8000, 8)), repeats=20
)
SCALES = {settings.name: settings for settings in (SMOKE, SMALL, MEDIUM, FULL)}
"""smoke: the paper's shape with a small prior. small: everything but the longest prompts, which
take two cores without bfloat16 minutes each. medium: these too. full: batches for a GPU."""

PHASES = ("preprocessing", "encoder", "upper")
TIMES = ("latency", "ttft", *PHASES)

Report = Callable[[str], None]


def measure(settings: Table3Settings, say: Report = lambda line: None) -> list[dict[str, Any]]:
    """Rows of the table, two for each shape: "baseline", then "quickmerge".

    Args:
        settings: shapes and repeats (:data:`SCALES`).
        say: is told what is measured next.

    Returns:
        flat dicts with the same keys: shape, method, model, device, dtype, source_tokens, batch,
        generated, repeats; tokens_mean, tokens_std; kv_mb, kv_mb_positions, kv_mb_prompt,
        kv_blocks (of the batch, at the peak), kv_blocks_needed, block_size; latency_ms, ttft_ms,
        preprocessing_ms, encoder_ms, upper_ms, each with _low and _high (None where there is no
        such time); change_tokens, change_kv_mb and change_latency, change_ttft (the last two with
        _low and _high) in per cent, None for the baseline.

    Raises:
        RuntimeError: an engine did not start or failed, or a prompt was not compressed.
        ValueError: the texts or the model cannot be used.
    """
    rows = _prior_rows(settings, say)
    return rows + (_served_rows(settings, say) if settings.served else [])


def _prior_rows(settings: Table3Settings, say: Report) -> list[dict[str, Any]]:
    say(f"the paper's shape, {settings.tokens} tokens x {settings.batch}")
    child = Child(PriorBench, settings)
    try:
        facts = child.ready()
        runs = [child.ask(repeat) for repeat in range(settings.repeats + 1)][1:]
    finally:
        child.stop()
    shape = {"shape": "paper", **facts, "source_tokens": settings.tokens, "batch": settings.batch}
    return _pair(shape, settings, {name: [run[name] for run in runs] for name in METHODS})


def _served_rows(settings: Table3Settings, say: Report) -> list[dict[str, Any]]:
    say("starting the served model, plain and with the plug-in")
    model = named_model(settings.model)
    children = {name: Child(ServedBench, settings, model, name) for name in METHODS}
    try:
        facts, _ = [child.ready() for child in children.values()]  # they start side by side
        rows: list[dict[str, Any]] = []
        for length, batch in settings.served:
            say(f"the served model, {length} tokens x {batch}")
            runs: dict[str, list[Run]] = {name: [] for name in METHODS}
            for repeat in range(settings.repeats + 1):
                for name in alternating(repeat):
                    got = children[name].ask(length, batch, repeat, repeat > 0)
                    runs[name] += [got] if repeat else []
            shape = {"shape": f"served {length}", **facts, "source_tokens": length, "batch": batch}
            rows += _pair(shape, settings, runs)
    finally:
        for child in children.values():
            child.stop()
    return rows


def _pair(
    shape: dict[str, Any], settings: Table3Settings, runs: dict[str, list[Run]]
) -> list[dict[str, Any]]:
    rows = [_row({**shape, "method": name}, settings, runs[name]) for name in METHODS]
    plain, ours = rows
    for row in rows:
        for name in ("tokens", "kv_mb"):
            key = "tokens_mean" if name == "tokens" else name
            row[f"change_{name}"] = None if row is plain else 100 * (ours[key] / plain[key] - 1)
        for name in ("latency", "ttft"):
            changes = [
                100 * (_time(after, name) / _time(before, name) - 1)
                for before, after in zip(*(runs[method] for method in METHODS), strict=True)
            ]
            row.update(_spread(f"change_{name}", [] if row is plain else changes))
    return rows


def _row(shape: dict[str, Any], settings: Table3Settings, runs: list[Run]) -> dict[str, Any]:
    kept = [count for run in runs for count in run.kept]
    one = runs[0]
    position = one.block_bytes / settings.block_size
    needed = max(sum(settings.blocks(count) for count in run.kept) for run in runs)
    row = {
        **shape, "generated": settings.generated, "repeats": len(runs),
        "tokens_mean": fmean(kept), "tokens_std": pstdev(kept),
        "kv_mb": max(run.blocks for run in runs) * one.block_bytes / 1e6,
        "kv_mb_positions": position * fmean(
            sum(count + settings.generated - 1 for count in run.kept) for run in runs
        ) / 1e6,
        "kv_mb_prompt": position * fmean(sum(run.kept) for run in runs) / 1e6,
        "kv_blocks": max(run.blocks for run in runs), "kv_blocks_needed": needed,
        "block_size": settings.block_size,
    }
    for name in TIMES:
        values = [_time(run, name) for run in runs]
        row.update(_spread(f"{name}_ms", [1e3 * value for value in values if value is not None]))
    return row


def _time(run: Run, name: str) -> Any:
    """Seconds of one run by the name of the column; None if there are none."""
    return {"latency": run.step, "ttft": run.ttft}.get(name, run.phases.get(name))


def _spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: median(values), f"{name}_low": min(values), f"{name}_high": max(values)}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as the paper's table, a line for each, times with their spread."""
    head = ("shape", "batch", "method", "tokens", "KV MB", "latency ms", "TTFT ms",
            "preprocessing ms", "change: tokens", "KV", "latency", "TTFT")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        times = [_cell(row, f"{name}_ms") for name in ("latency", "ttft", "preprocessing")]
        changes = [
            "" if row[f"change_{name}"] is None else f"{row[f'change_{name}']:+.1f} %"
            for name in ("tokens", "kv_mb", "latency", "ttft")
        ]
        cells = [row["shape"], row["batch"], row["method"], f"{row['tokens_mean']:.0f}",
                 f"{row['kv_mb']:.1f}", *times, *changes]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return ""
    return f"{row[name]:.2f} ({row[name + '_low']:.2f}-{row[name + '_high']:.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    from qm_vllm_eval.study.meta import describe_run

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--model", help="default: the embedded SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", help="default: bfloat16 where it is fast, else float32")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--block-size", type=int)
    parser.add_argument("--enforce-eager", action="store_true", default=None)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    given = {
        name: getattr(args, name)
        for name in ("model", "dtype", "repeats", "block_size", "enforce_eager")
        if getattr(args, name) is not None
    }
    settings = replace(SCALES[args.scale], **given)
    named = {**asdict(settings), "model": settings.model and Path(settings.model).name}
    about = describe_run(named, methods={name: name for name in METHODS})
    rows = measure(settings, say=lambda line: print(f"table 3: {line}", file=sys.stderr))
    print(markdown(rows))
    if args.json:
        args.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", "utf-8")
        print(f"written: {args.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
