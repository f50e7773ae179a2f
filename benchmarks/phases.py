"""A compressed prefill taken apart, in the vLLM engine, with the floor beside each part.

    python benchmarks/phases.py --lengths 2048,4096 --json phases.json
    python benchmarks/phases.py --count --json launches.json     # operations instead of seconds

The floor of a part is the larger of its FLOPs over the machine's GEMM rate and its bytes over its
copy bandwidth, both measured on the spot (``floor.py``). Bytes are what must be read and written
at least once: weights per chunk, states, keys and values.

``--count`` runs a made-up decoder with the numbers of layers and heads of Llama 3 8B and narrow
rows, and counts operations: how many there are does not depend on their width nor on the machine.
On a GPU each is at least one kernel launch. Attention and linear layers stand for themselves there:
another backend may have more or fewer.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from floor import Floor, measure_floor
from sections import Operations, Reads, Sections
from setting import (
    common_options,
    demand_compressed,
    fill_in,
    in_child,
    report_of,
    start,
    table,
    write,
)

SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 4096,
    "hidden_size": 1024, "intermediate_size": 512, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "float32",
}
"""Layers and heads of Llama 3 8B, rows a quarter as wide."""


def run(args: argparse.Namespace, lengths: list[int]) -> list[dict[str, Any]]:
    """One engine; for each length the runs' sections and the report of the last."""
    import time

    from vllm import SamplingParams

    plugin = {"ratio": args.ratio, "min_tokens": 2, "delivery": "inject",
              "encoder_chunk_tokens": args.chunk}
    llm = start(
        args.model, plugin, dtype=args.dtype, max_model_len=max(lengths) + 16, max_num_seqs=2,
        max_num_batched_tokens=args.chunk, enforce_eager=True,
    )
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    from qm_vllm.layers import window_layers

    layers = llm.llm_engine.vllm_config.model_config.hf_text_config.num_hidden_layers
    read = window_layers(get_kv_transfer_group().worker_side.config, layers)
    sections, found = Sections(), []
    sections.install(llm)
    params = SamplingParams(max_tokens=1, temperature=0, detokenize=False)
    vocab = json.loads((Path(args.model) / "config.json").read_text())["vocab_size"]

    def once(length: int, number: int) -> tuple[float, dict[str, Any]]:
        pick = random.Random(number)
        ids = [pick.randrange(20, vocab) for _ in range(length)]
        sections.reset()
        begin = time.perf_counter()
        (out,) = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
        taken = time.perf_counter() - begin
        sections.reset_after = None  # type: ignore[attr-defined]
        sections.mark()
        demand_compressed(out)
        return taken, report_of(out)

    for length in lengths:
        once(min(length, 1024), -1)
        if args.count:
            with Operations(sections), Reads(sections):
                _, said = once(length, 0)
            found.append({
                "n": length, "report": said, "launches": dict(sections.launches),
                "waits": dict(sections.waits),
            })
            continue
        runs = []
        for number in range(args.runs):
            ttft, said = once(length, number)
            runs.append({"ttft_s": ttft, **sections.seconds})
        found.append({"n": length, "report": said, "read": read, "runs": runs})
    return found


def floors(
    model: str, dtype: str, chunk: int, got: dict[str, Any], machine: Floor
) -> dict[str, float]:
    """Least seconds of each section, from the model's shape."""
    config = json.loads((Path(model) / "config.json").read_text())
    width, inner, layers = (
        config[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or width // heads
    size = {"float32": 4, "bfloat16": 2, "float16": 2}[dtype]
    n, k, depth = got["n"], got["report"]["kept_tokens"], got["report"]["encoder_layers"]
    weights = width * head * (2 * heads + 2 * kv) + 3 * width * inner
    pair = 2 * kv * head * size

    def linear(rows: int, count: int) -> float:
        passes = -(-rows // chunk)
        moved = count * (passes * weights + 4 * rows * width) * size
        return machine.seconds(2 * rows * weights * count, moved)

    def attention(rows: int, count: int) -> float:
        moved = count * rows * (2 * heads * head * size + pair)
        return machine.seconds(2 * rows * rows * heads * head * count, moved)

    read = got["read"]
    looked = read * 2 * 64 * n * heads * head
    return {
        "embedding": machine.seconds(0, 2 * n * width * size),
        "linear layers, encoder": linear(n, depth),
        "attention, encoder": attention(n, depth),
        "scoring": machine.seconds(looked, read * n * kv * head * size),
        "attention error": machine.seconds(2 * looked, read * n * pair),
        "merge": machine.seconds(0, (n + k) * width * size),
        "re-rotation": machine.seconds(0, 2 * k * pair * depth),
        "linear layers, upper": linear(k, layers - depth),
        "attention, upper": attention(k, layers - depth),
        "KV write": machine.seconds(0, 2 * k * pair * layers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="2048")
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--count", action="store_true", help="operations instead of seconds")
    common_options(parser)
    args = parser.parse_args()
    lengths = [int(n) for n in args.lengths.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        if args.count and not args.model:
            (Path(folder) / "config.json").write_text(json.dumps(SHAPE))
            args.model, args.dtype = folder, "float32"
        fill_in(args)
        found = in_child(run, args, lengths)
        name = "32 layers, 32 heads, 8 KV heads" if args.model == folder else Path(args.model).name
        content: dict[str, Any] = {"model": name, "dtype": args.dtype, "ratio": args.ratio}
        if args.count:
            rows = [
                {"N": got["n"], "section": part, "launches": count,
                 "waits": got["waits"].get(part, 0)}
                for got in found for part, count in got["launches"].items()
            ]
        else:
            machine = measure_floor(args.dtype)
            content["floor"] = machine.facts()
            rows = []
            for got in found:
                least = floors(args.model, args.dtype, args.chunk, got, machine)
                ttft = statistics.median(r["ttft_s"] for r in got["runs"])
                for part in max(got["runs"], key=len):
                    if part == "ttft_s":
                        continue
                    spent = [r.get(part, 0.0) for r in got["runs"]]
                    middle = statistics.median(spent)
                    rows.append({
                        "N": got["n"], "section": part, "seconds": middle,
                        "fastest": min(spent), "slowest": max(spent),
                        "share of TTFT": middle / ttft, "floor s": least.get(part, 0.0),
                    })
    table(rows)
    write(args.json, **content, raw=found, rows=rows)


if __name__ == "__main__":
    main()
