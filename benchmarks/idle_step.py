"""Host time that the plug-in adds to a decoding step in which it has nothing to do.

    python benchmarks/idle_step.py --json idle_step.json

Two engines take turns, each in a process of its own: plain vLLM, and the plug-in, ``enabled`` and
with prompts below ``min_tokens``. So many requests decode; in steps where none begins or ends the
times of the scheduler's two calls, ``schedule`` and ``update_from_output``, are added up, and with
the plug-in those of its connector's calls in the worker. ``scheduler_us`` is the difference of the
medians, ``worker_us`` the median, ``added_us`` their sum. The aim is 50 at 256 requests.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from setting import Child, common_options, fill_in, report, start

WORKER_CALLS = (
    "bind_connector_metadata", "start_load_kv", "wait_for_layer_load", "save_kv_layer",
    "wait_for_save", "get_finished", "get_block_ids_with_load_errors",
    "build_connector_worker_meta", "clear_connector_metadata",
)
"""Calls of a connector that a step makes in the worker."""


class Clock:
    """Adds up the time that an object's methods take, by a name."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Replace a method by one that is timed."""
        own: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return own(*args, **options)
            finally:
                self.taken[name] += time.perf_counter() - begun

        setattr(owner, method, timed)


def serve(pipe: Any, model: str, plugin: dict[str, Any] | None, options: dict[str, Any]) -> None:
    """A child's work: [requests, steps] in, seconds of each step out."""
    from vllm import SamplingParams
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

    engine = start(model, plugin, **options).llm_engine
    clock = Clock()
    scheduler = engine.engine_core.engine_core.scheduler
    for method in ("schedule", "update_from_output"):
        clock.watch(scheduler, method, "scheduler")
    if has_kv_transfer_group():
        for method in WORKER_CALLS:
            clock.watch(get_kv_transfer_group(), method, "worker")
    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        requests, steps = asked
        params = SamplingParams(max_tokens=steps + 40, ignore_eos=True, temperature=0)
        for number in range(requests):
            engine.add_request(str(number), {"prompt_token_ids": [number + 3, 5, 7, 11]}, params)
        while len(scheduler.running) < requests:
            engine.step()
        for _ in range(5):
            engine.step()
        found = []
        for _ in range(steps):
            clock.taken.clear()
            engine.step()
            found.append(dict(clock.taken))
        engine.abort_request([str(number) for number in range(requests)], internal=False)
        while engine.has_unfinished_requests():
            engine.step()
        pipe.send(found)


def medians(found: list[dict[str, float]], name: str) -> float:
    """Of all steps, in microseconds."""
    return 1e6 * statistics.median(step.get(name, 0.0) for step in found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common_options(parser)
    parser.add_argument("--requests", default="1,16,64,256", help="that decode at once")
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    fill_in(args)
    counts = [int(one) for one in args.requests.split(",")]
    options = {
        "dtype": args.dtype, "enforce_eager": args.enforce_eager, "max_model_len": 256,
        "max_num_seqs": max(counts), "max_num_batched_tokens": max(2048, 4 * max(counts)),
    }
    ways = {"plain": None, "plug-in": {"ratio": args.ratio}}
    children = {way: Child(serve, args.model, plugin, options) for way, plugin in ways.items()}
    rows = []
    for count in counts:
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for turn in range(args.turns):
            for way in list(ways)[:: 1 if turn % 2 else -1]:
                found[way] += children[way].ask([count, args.steps])
        plain, own = (medians(found[way], "scheduler") for way in ways)
        worker = medians(found["plug-in"], "worker")
        rows.append({
            "requests": count, "plain_us": plain, "scheduler_us": own - plain,
            "worker_us": worker, "added_us": own - plain + worker,
        })
    for child in children.values():
        child.stop()
    report(rows, args.json, steps=args.steps * args.turns)


if __name__ == "__main__":
    main()
