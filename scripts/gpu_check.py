#!/usr/bin/env python
"""Checks a CUDA machine: right results first, then speed against the machine's own limits.

    python scripts/gpu_check.py --json gpu.json              # everything, under 10 minutes
    python scripts/gpu_check.py --only floor,entropy
    python scripts/gpu_check.py --only modes                 # both runners, eager and CUDA graphs

Needs no network: models are random or made up. Parts: ``floor`` measures the bfloat16 GEMM rate
and the copy bandwidth; ``entropy`` compares the entropy with float64 and times it; ``dense`` times
the encoder's layers beside vLLM's own and beside their matrix products and attention alone;
``v1`` and ``v2`` run the integration tests in vLLM's two model runners; ``prefill`` and
``saturation`` time a decoder with the shape of Llama 3 8B, plain and compressed. ``modes``, which
runs on demand as each of its starts compiles, is one prefill in each model runner, eager and with
CUDA graphs. One table at the end; the exit status is 1 if a result is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as Tree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("floor", "entropy", "dense", "v1", "v2", "prefill", "native", "saturation")
MODE_LENGTH = "8192"
V2_TESTS = (
    "test_keep_all.py", "test_compressed.py", "test_jobs.py", "test_requests.py",
    "test_engine_life.py", "test_modes.py", "test_settings.py", "test_prior_served.py",
    "test_cuda.py",
)
SHAPE_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
}
ENTROPY_ERROR = {"float32": 1e-5, "bfloat16": 1e-2}

Row = tuple[str, str, bool]
"""What was looked at, what was seen, whether it is right."""


def milliseconds(work: Any, repeats: int = 10) -> tuple[float, float, float]:
    """Median, fastest and slowest of some runs after three warm-ups, by CUDA events."""
    import torch

    for _ in range(3):
        work()
    taken = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        taken.append(begin.elapsed_time(end))
    return statistics.median(taken), min(taken), max(taken)


def floor(found: dict[str, Any]) -> list[Row]:
    """bfloat16 GEMM rate in TFLOP/s, and copy bandwidth in TB/s (bytes read and written)."""
    import torch

    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    middle, low, high = milliseconds(lambda: a @ b)
    rate = 2 * size**3 / middle / 1e9
    source = torch.empty(1 << 30, device="cuda", dtype=torch.float32)
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source))[0]
    bandwidth = 2 * source.nbytes / copy / 1e9
    found["floor"] = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
        "gemm_tflops": rate, "gemm_ms": [middle, low, high], "copy_tb_s": bandwidth,
    }
    return [("bfloat16 GEMM, 8192 x 8192 x 8192", f"{rate:.0f} TFLOP/s", True),
            ("copy", f"{bandwidth:.2f} TB/s", True)]


def entropy(found: dict[str, Any]) -> list[Row]:
    """The entropy against float64 on shapes of all sorts; its time on long and wide ones."""
    import torch

    from qm_vllm.compress.entropy import attention_entropy

    rows: list[Row] = []
    generator = torch.Generator("cuda").manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        name, worst = str(dtype).removeprefix("torch."), 0.0
        for count, width in ((1, 64), (2, 8), (257, 576), (1000, 64), (1537, 4096), (4096, 2048)):
            states = torch.randn(count, width, device="cuda", generator=generator).to(dtype)
            wide = states.double()
            unit = wide / wide.norm(dim=1, keepdim=True)
            logs = (24.0 * unit @ unit.T).log_softmax(1)
            truth = -(logs.exp() * logs).sum(1)
            error = (attention_entropy(states, 24.0).double() - truth).abs() / truth.clamp_min(1e-6)
            worst = max(worst, float(error.max()))
        found[f"entropy_error_{name}"] = worst
        rows.append((f"entropy, {name}: largest relative error", f"{worst:.1e}",
                     worst <= ENTROPY_ERROR[name]))
    for count in (8192, 32768):
        states = torch.randn(count, 4096, device="cuda", generator=generator).bfloat16()
        middle, low, high = milliseconds(lambda s=states: attention_entropy(s, 24.0), 3)
        rate = 2 * count**2 * 4096 / middle / 1e9  # of the whole N x N matrix of products
        found[f"entropy_ms_{count}"] = {"ms": [middle, low, high], "tflops": rate}
        rows.append((f"entropy of {count:,} x 4,096, bfloat16",
                     f"{middle:.1f} ms ({low:.1f}-{high:.1f}), {rate:.0f} TFLOP/s", True))
    return rows


def tests(runner: str, found: dict[str, Any], workers: int) -> list[Row]:
    """The integration tests on this device, in one of vLLM's model runners."""
    folder = Path("tests/integration")
    files = [folder] if runner == "v1" else [folder / name for name in V2_TESTS]
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "junit.xml"
        environment = os.environ | {
            "VLLM_USE_V2_MODEL_RUNNER": str(int(runner == "v2")), "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-n", str(workers), "--dist", "loadfile",
                   f"--junitxml={file}", "-o", "junit_logging=no", *map(str, files)]
        log = Path(f"gpu_check_{runner}.log")
        with log.open("w") as out:
            subprocess.run(command, cwd=ROOT, env=environment, stdout=out, stderr=out, check=False)
        if not file.is_file():
            return [(f"integration tests, runner {runner}", f"did not run, see {log}", False)]
        suite = next(Tree.parse(file).iter("testsuite"))
    bad = [f"{case.get('classname')}::{case.get('name')}" for case in suite.iter("testcase")
           if case.find("failure") is not None or case.find("error") is not None]
    count = int(suite.get("tests", 0))
    skipped = int(suite.get("skipped", 0))
    found[f"tests_{runner}"] = {"run": count - skipped, "skipped": skipped, "failed": bad}
    text = f"{count - skipped - len(bad)} passed, {len(bad)} failed, {skipped} skipped"
    return [(f"integration tests, runner {runner}", text, count > 0 and not bad)]


def benchmark(
    name: str, found: dict[str, Any], *arguments: str, label: str = "", runner: str | None = None
) -> list[dict[str, Any]]:
    """Run one of benchmarks/ on the made-up 8B; its rows. ``found`` gets them as name + label."""
    chosen = {} if runner is None else {"VLLM_USE_V2_MODEL_RUNNER": str(int(runner == "v2"))}
    with tempfile.TemporaryDirectory() as work:
        model = Path(work) / "llama-8b-shape"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(SHAPE_8B))
        out = Path(work) / "out.json"
        done = subprocess.run(
            [sys.executable, f"benchmarks/{name}.py", "--model", str(model), "--dtype", "bfloat16",
             "--json", str(out), *arguments],
            cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | chosen,
        )
        log = Path(f"gpu_check_{name}{label}.log")
        log.write_text(done.stdout[-100_000:] + done.stderr[-100_000:])
        if not out.is_file():
            raise RuntimeError(f"benchmarks/{name}.py gave no result: {done.stderr[-300:]}")
        content = json.loads(out.read_text())
    found[name + label] = content
    rows: list[dict[str, Any]] = content if isinstance(content, list) else content["rows"]
    return rows


def kv_gib(lengths: str) -> str:
    """KV cache that holds the longest of the prompts."""
    return str(2 + max(int(n) for n in lengths.split(",")) // 6144)


def dense(found: dict[str, Any], lengths: str) -> list[Row]:
    """The plug-in's layers, vLLM's eager ones, and the products and attention alone."""
    rows = benchmark("encoder", found, "--lengths", lengths, "--chunk", "8192", "--modes", "eager",
                     "--kv-gib", kv_gib(lengths))
    return [
        (f"all layers, 8B shape, N = {row['N']:,}",
         f"{1e3 * row['ours s']:.0f} ms: {row['ours / vLLM']:.2f} of vLLM's eager ones, products "
         f"and attention alone {row['bare / ours']:.2f} of it", True)
        for row in rows
    ]


def modes(found: dict[str, Any]) -> list[Row]:
    """One prefill in each of vLLM's model runners, eager and with CUDA graphs."""
    rows: list[Row] = []
    for runner in ("v1", "v2"):
        for mode in (("--enforce-eager",), ()):
            name = f"_{runner}_{'eager' if mode else 'graphs'}"
            rows += prefill(found, MODE_LENGTH, *mode, label=name, runner=runner)
    return rows


def prefill(
    found: dict[str, Any], lengths: str, *mode: str, label: str = "", runner: str | None = None
) -> list[Row]:
    """Time to first token, interleaved."""
    rows = benchmark("prefill", found, "--lengths", lengths, "--runs", "5",
                     "--encoder-chunk-tokens", "8192", "--kv-gib", kv_gib(lengths), *mode,
                     label=label, runner=runner)
    return [
        (f"TTFT, 8B shape, N = {row['n']:,}, K = {row['kept']:,}{label.replace('_', ' ')}",
         f"{1e3 * row['plain_ttft_s']:.0f} ms plain, {1e3 * row['quickmerge_ttft_s']:.0f} ms "
         f"compressed: {row['speedup']:.2f}x (limit {row['flop_limit']:.2f}x)", True)
        for row in rows
    ]


def native(found: dict[str, Any], lengths: str, *mode: str) -> list[Row]:
    """Time to first token of both deliveries in each runner, and of prompts that share a prefix."""
    rows: list[Row] = []
    for runner in ("v1", "v2"):
        for row in benchmark("first_token", found, "--lengths", lengths, "--runs", "5", "--chunk",
                             "8192", "--kv-gib", kv_gib(lengths), *mode, label=f"_{runner}",
                             runner=runner):
            rows.append((
                f"TTFT, 8B shape, {row['way']}, runner {runner}, N = {row['N']:,}",
                f"{1e3 * row['ttft_s']:.0f} ms: {row['ttft / plain']:.3f} of plain", True,
            ))
    shared = benchmark("turns", found, "--chunk", "8192", "--kv-gib", "4", *mode)
    return rows + [
        (f"{row['scenario']}, {row['prompts']} prompts, {row['way']}",
         f"sum of TTFT {row['ttft_sum_s']:.2f} s, {row['blocks']} blocks while decoding", True)
        for row in shared
    ]


def saturation(found: dict[str, Any], *mode: str) -> list[Row]:
    """Throughput with more requests than a fixed KV cache holds."""
    rows = benchmark("saturation", found, "--requests", "96", "--fit", "16", "--length", "2048",
                     "--output", "128", "--chunk", "8192", "--runs", "2", "--ratio", "0.4",
                     "--native", *mode)
    plain, *others = ((row["case"], row["requests/s"]) for row in rows)
    return [(f"throughput in a fixed KV cache, N = 2,048, 128 output tokens, ratio 0.4: {name}",
             f"{plain[1]:.1f} requests/s plain, {ours:.1f} compressed: {ours / plain[1]:.2f}x",
             True) for name, ours in others]


def main() -> int:
    """Run the parts; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {','.join(PARTS)},modes")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--lengths", default="2048,8192,32768", help="of the prefill part")
    parser.add_argument("--eager", action="store_true",
                        help="prefill and saturation without compilation; starts much faster")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("gpu_check: this machine has no CUDA device", file=sys.stderr)
        return 2
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d")}
    mode = ("--enforce-eager",) if args.eager else ()
    parts = {
        "floor": lambda: floor(found), "entropy": lambda: entropy(found),
        "v1": lambda: tests("v1", found, args.workers),
        "v2": lambda: tests("v2", found, args.workers),
        "dense": lambda: dense(found, args.lengths), "modes": lambda: modes(found),
        "prefill": lambda: prefill(found, args.lengths, *mode),
        "native": lambda: native(found, args.lengths, *mode),
        "saturation": lambda: saturation(found, *mode),
    }
    rows: list[Row] = []
    for name in args.only.split(","):
        begin = time.perf_counter()
        try:
            rows += parts[name]()
        except Exception as error:
            rows.append((name, f"{type(error).__name__}: {error}", False))
        torch.cuda.empty_cache()
        print(f"gpu_check: {name} took {time.perf_counter() - begin:.0f} s", flush=True)
        if args.json:
            args.json.write_text(json.dumps({**found, "rows": rows}, indent=1) + "\n")
    print("| what | seen | |\n|---|---|---|")
    for what, seen, right in rows:
        print(f"| {what} | {seen} | {'ok' if right else 'WRONG'} |")
    return 0 if all(right for _, _, right in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
