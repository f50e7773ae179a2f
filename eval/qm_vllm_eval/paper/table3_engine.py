"""What Table 3's two halves share: settings, an engine, a batch under the clock."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

BLOCKS_TO_SPARE = 8
"""Beyond those that the largest batch needs; vLLM keeps one for itself."""


@dataclass(frozen=True)
class Table3Settings:
    """What is measured, and how often.

    Attributes:
        name: of the scale.
        prior: layers, width, heads of the prior of the paper's own set-up.
        tokens, batch: N and the sequences at once there.
        served: (N, batch) of each shape of the served model; may be empty.
        model: folder or name of the served model; None: the embedded SmolLM2-135M-Instruct.
        ratio: K / N; the paper's 128 to 54 tokens (1 / 2.37 rounded up would be 55).
        generated: tokens that every request generates, >= 3.
        repeats: measured runs of each method, alternating, after one that is not counted.
        block_size: tokens of a KV block.
        dtype: as vLLM takes it; None: bfloat16 where it is fast, else float32.
        enforce_eager: without compilation and CUDA graphs.
        texts: folder with .txt files to encode; None: what ``scripts/fetch_texts.sh`` fetched,
            else the demo's essay.

    Raises:
        ValueError: a figure is impossible.
    """

    name: str = "small"
    prior: tuple[int, int, int] = (6, 512, 8)
    tokens: int = 128
    batch: int = 32
    served: tuple[tuple[int, int], ...] = ((128, 32), (2048, 1), (4096, 1))
    model: str | None = None
    ratio: float = 54 / 128
    generated: int = 32
    repeats: int = 5
    block_size: int = 32
    dtype: str | None = None
    enforce_eager: bool = False
    texts: Path | None = None

    def __post_init__(self) -> None:
        """Checks the figures."""
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio={self.ratio} must lie between 0 and 1")
        for name, least in (("repeats", 1), ("generated", 3), ("block_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        for length, batch in ((self.tokens, self.batch), *self.served):
            if length < 4 or batch < 1:
                raise ValueError(f"a shape of {length} tokens x {batch} cannot be measured")

    def blocks(self, tokens: int) -> int:
        """Blocks that a prompt of K tokens needs at its last step: the last output has no KV."""
        return -(-(tokens + self.generated - 1) // self.block_size)


@dataclass
class Run:
    """One batch through one engine.

    Attributes:
        kept: positions that each prompt took in the cache, [B]; 0 where it was embeddings.
        step: median seconds of a step in which every request decoded one token.
        steps: how many such steps there were.
        ttft: mean over requests of the seconds from the batch's arrival to the first token.
        blocks: the most blocks held at once, taken right after they are allocated.
        block_bytes: of one block over all layers.
        phases: seconds by name, over the batch: "preprocessing", "encoder", "upper".
    """

    kept: list[int]
    step: float
    steps: int
    ttft: float
    blocks: int
    block_bytes: int
    phases: dict[str, float] = field(default_factory=dict)


def start(model: str | Path, settings: Table3Settings, shapes: Sequence[tuple[int, int]],
          **options: Any) -> Any:
    """An in-process ``vllm.LLM`` whose cache and steps hold each shape's whole batch.

    Args:
        shapes: (N, batch) of all batches to come.
        options: more of vLLM's options; they win.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import torch
    from vllm import LLM

    from qm_vllm.local_engine import has_compiler
    from qm_vllm.processor import best_dtype

    common: dict[str, Any] = {
        "dtype": settings.dtype or best_dtype(), "block_size": settings.block_size,
        "max_model_len": max(n for n, _ in shapes) + settings.generated,
        "max_num_batched_tokens": max(n * batch for n, batch in shapes),
        "max_num_seqs": max(batch for _, batch in shapes),
        "num_gpu_blocks_override": BLOCKS_TO_SPARE + max(
            batch * settings.blocks(n) for n, batch in shapes
        ),
        "kv_cache_memory_bytes": 2 << 30, "enable_prefix_caching": False,
        "disable_log_stats": True, "seed": 0,
        "enforce_eager": settings.enforce_eager or not has_compiler(),
    }
    if torch.cuda.is_available():
        common["gpu_memory_utilization"] = 0.45  # two engines share the device
    else:
        common["use_tqdm_on_load"] = False
    return LLM(str(model), **{**common, **options})


def run(llm: Any, prompts: Sequence[dict[str, Any]], generated: int, *,
        options: dict[str, Any] | None = None, measured: bool = True) -> Run:
    """Send a batch at once and step the engine until it is done.

    Args:
        prompts: as vLLM takes them; ids or embeddings.
        generated: tokens of every request.
        options: of each request, for ``extra_args``.
        measured: False for a warm-up, whose times may be missing.

    Raises:
        RuntimeError: the batch never decoded as a whole, so there is no time of a step, or the
            plug-in was on and left a request alone.
    """
    from vllm import SamplingParams

    params = SamplingParams(
        max_tokens=generated, temperature=0.0, ignore_eos=True, detokenize=False,
        extra_args=options,
    )
    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    said: dict[str, int] = {}
    first: dict[str, float] = {}
    kept: dict[str, int] = {}
    phases: dict[str, float] = {}
    gaps: list[float] = []
    before: float | None = None
    with _watch(scheduler) as peak:
        begin = time.perf_counter()
        for number, prompt in enumerate(prompts):
            engine.add_request(f"table3-{number}", prompt, params)
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = time.perf_counter()
            ready = len(first) == len(prompts)  # as of the step before
            told = 0
            for output in outputs:
                count = len(output.outputs[0].token_ids)
                told += count == said.get(output.request_id, 0) + 1
                said[output.request_id] = count
                if count:
                    first.setdefault(output.request_id, now - begin)
                if output.finished:
                    kept[output.request_id] = _finish(output, phases)
            if outputs and ready and told == len(prompts) and before is not None:
                gaps.append(now - before)
            before = now if outputs else before
    if measured and not gaps:
        raise RuntimeError(
            f"the {len(prompts)} requests never decoded together; generate more tokens or send "
            "fewer requests"
        )
    groups = scheduler.kv_cache_config.kv_cache_groups
    return Run(
        kept=list(kept.values()), step=median(gaps) if gaps else float("nan"), steps=len(gaps),
        ttft=sum(first.values()) / len(first), blocks=peak[0],
        block_bytes=sum(
            group.kv_cache_spec.page_size_bytes * len(group.layer_names) for group in groups
        ),
        phases=phases,
    )


def _finish(output: Any, phases: dict[str, float]) -> int:
    """Positions of a finished request; adds the plug-in's seconds to ``phases``."""
    report = (output.kv_transfer_params or {}).get("quickmerge")
    if report is None:
        return len(output.prompt_token_ids or ())
    if report["status"] != "compressed":
        raise RuntimeError(f"request {output.request_id} was not compressed: {report['reason']}")
    for name, parts in (
        ("encoder", ("encoder",)), ("preprocessing", ("saliency", "merge")), ("upper", ("upper",))
    ):
        spent = sum(report[f"seconds_{part}"] for part in parts)
        phases[name] = phases.get(name, 0.0) + spent
    return int(report["kept_tokens"])


@contextmanager
def _watch(scheduler: Any) -> Iterator[list[int]]:
    """A list whose one entry is the most blocks that running requests have held so far, looked at
    after each schedule. What a job leases while it runs is no request's and is not counted."""
    manager, schedule, peak = scheduler.kv_cache_manager, scheduler.schedule, [0]

    def watched(*arguments: Any, **named: Any) -> Any:
        result = schedule(*arguments, **named)
        held = (manager.get_block_ids(one.request_id)[0] for one in scheduler.running)
        peak[0] = max(peak[0], sum(map(len, held)))
        return result

    scheduler.schedule = watched
    try:
        yield peak
    finally:
        del scheduler.schedule


def device() -> str:
    """Name of the device that an engine would take here."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
