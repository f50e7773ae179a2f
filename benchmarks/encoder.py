"""Our dense layers against vLLM's own prefill layers, at equal tokens and chunks.

    python benchmarks/encoder.py --lengths 2048,4096 --json encoder.json

Per layer and prompt: the plug-in's pass over all layers (embedding, layers, and the keys and values
that a job keeps), and vLLM's forward of a plain prefill (embedding, layers, last norm; without
logits, sampling and scheduling), eager and compiled. Engines live in processes of their own and
take turns. The aim is a ratio of 1.1 at most. What a compressed prefill does besides: phases.py.

``bare`` is what no implementation can leave out: the layers' four matrix products on random
weights and the attention kernel, each called by itself on the same rows. The aim on CUDA is that
``bare`` is 0.8 of ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from setting import Child, common_options, fill_in, prompt_ids, report, start

AIM, BARE_AIM = 1.1, 0.8


def now() -> float:
    """Seconds, after all that the device was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def engine_options(args: argparse.Namespace, longest: int, eager: bool) -> dict[str, Any]:
    """Equal for all engines."""
    return {
        "dtype": args.dtype, "max_model_len": longest + 16, "max_num_seqs": 2,
        "max_num_batched_tokens": args.chunk, "enforce_eager": eager,
        "kv_cache_memory_bytes": args.kv_gib << 30,
    }


def model_of(llm: Any) -> Any:
    """The loaded model of an in-process engine."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    return worker.model_runner.get_model()


def plain(pipe: Any, args: argparse.Namespace, longest: int, eager: bool) -> None:
    """Child process: for each prompt the seconds that vLLM's forward took, all chunks together."""
    llm = start(args.model, None, **engine_options(args, longest, eager))
    from vllm import SamplingParams

    model, spent = model_of(llm), [0.0]
    begun = [0.0]

    def before(*_: Any) -> None:
        begun[0] = now()

    def after(*_: Any) -> None:
        spent[0] += now() - begun[0]

    model.register_forward_pre_hook(before)
    model.register_forward_hook(after)
    params = SamplingParams(max_tokens=1, temperature=0, detokenize=False)
    pipe.send("ready")
    while (ids := pipe.recv()) is not None:
        spent[0] = 0.0
        llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
        pipe.send(spent[0])


class Bare:
    """Matrix products and attention of all layers, and nothing else."""

    def __init__(self, runner: Any, config: dict[str, Any]) -> None:
        self.runner, self.attn = runner, runner.view.layers[0].attn
        width, inner = config["hidden_size"], config["intermediate_size"]
        size = self.attn.head_size
        heads, kv = self.attn.num_heads * size, self.attn.num_kv_heads * size
        shapes = ((heads + 2 * kv, width), (width, heads), (2 * inner, width), (width, inner))
        self.weights = [
            [self.random(*shape) for shape in shapes] for _ in runner.view.layers
        ]

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=self.runner.dtype, device=self.runner.device) / 32

    def seconds(self, rows: int) -> float:
        """Of a prompt of so many tokens, in the runner's chunks."""
        from qm_vllm.engine.dense.attention import choose_backend

        attn, chunk = self.attn, self.runner.chunk
        inputs = [self.random(min(chunk, rows), w.shape[1]) for w in self.weights[0]]
        query, key, value = (
            self.random(rows, heads, attn.head_size)
            for heads in (attn.num_heads, attn.num_kv_heads, attn.num_kv_heads)
        )
        attention = choose_backend(attn, self.runner.dtype, self.runner.device)
        begin = now()
        for weights in self.weights:
            attention.begin(rows)
            for first in range(0, rows, chunk):
                part = slice(first, min(first + chunk, rows))
                for states, weight in zip(inputs, weights, strict=True):
                    torch.nn.functional.linear(states[: part.stop - first], weight)
                attention.attend(query[part], key[part], value[part], first)
        return now() - begin


def dense(pipe: Any, args: argparse.Namespace, longest: int) -> None:
    """Child process: for each prompt the seconds of the plug-in's pass over all layers, and of its
    matrix products and attention alone."""
    options = engine_options(args, longest, True)
    _ = start(args.model, {"encoder_chunk_tokens": args.chunk}, **options)
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    from qm_vllm.engine.dense.runner import Stream

    runner = get_kv_transfer_group().worker_side.runner
    bare = Bare(runner, json.loads((Path(args.model) / "config.json").read_text()))
    pipe.send("ready")
    while (ids := pipe.recv()) is not None:
        with torch.inference_mode():
            begin, records = now(), []
            stream = Stream(runner.embed(ids))
            for layer in range(len(runner.view.layers)):
                record = runner.record_for(
                    layer, stream.bounds, rotated_keys=True, values=True
                )
                for _ in runner.run_layer(layer, stream, record):
                    pass
                records.append(record)
            spent = now() - begin
            del records, record, stream
            pipe.send((spent, bare.seconds(len(ids))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="2048,4096")
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kv-gib", type=int, default=1)
    parser.add_argument("--modes", default="compiled,eager", help="of the plain engine")
    common_options(parser)
    args = parser.parse_args()
    fill_in(args)
    lengths, modes = [int(n) for n in args.lengths.split(",")], args.modes.split(",")
    engines = {"ours": Child(dense, args, max(lengths))}
    for mode in modes:
        engines[mode] = Child(plain, args, max(lengths), mode == "eager")
    rows: list[dict[str, Any]] = []
    raw = []
    for length in lengths:
        taken: dict[str, list[float]] = {name: [] for name in (*engines, "bare")}
        for run in range(args.runs + 1):
            ids = prompt_ids(args.model, length, run)
            for name in list(engines)[:: -1 if run % 2 else 1]:
                spent = engines[name].ask(ids)
                if run and name == "ours":
                    taken["ours"].append(spent[0])
                    taken["bare"].append(spent[1])
                elif run:
                    taken[name].append(spent)
        raw.append({"n": length, **taken})
        for mode in modes:
            ratios = [a / b for a, b in zip(taken["ours"], taken[mode], strict=True)]
            rows.append({
                "N": length, "vLLM": mode, "vLLM s": statistics.median(taken[mode]),
                "ours s": statistics.median(taken["ours"]),
                "ours / vLLM": statistics.median(ratios),
                "lowest": min(ratios), "highest": max(ratios),
                f"at most {AIM}": statistics.median(ratios) <= AIM,
                "bare s": statistics.median(taken["bare"]),
                "bare / ours": statistics.median(
                    a / b for a, b in zip(taken["bare"], taken["ours"], strict=True)
                ),
            })
    for engine in engines.values():
        engine.stop()
    report(
        rows, args.json, model=Path(args.model).name, dtype=args.dtype, chunk=args.chunk,
        seconds=raw, aims={"ours / vLLM, at most": AIM, "bare / ours on CUDA, at least": BARE_AIM},
    )


if __name__ == "__main__":
    main()
