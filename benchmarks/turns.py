"""Requests that share a prefix: plain vLLM with its prefix cache against the deliveries of KV.

    python benchmarks/turns.py --json turns.json
    python benchmarks/turns.py --scenarios questions --questions 5 --ratio 0.25 --runs 1

Three scenarios, each a list of prompts that are sent one after another. ``chat``: a document, all
earlier questions with their answers, and a new question. ``questions``: each question on the same
document, without the others. ``agent``: a trace to which each step appends a tool's result; the
answers are not appended. A scenario ends before the first prompt that does not fit
``--max-model-len`` with its answer; ``prompts`` says how many were sent.

Four ways to serve them, each an engine in a process of its own with equal settings, prefix caching
and a KV cache of equal bytes. ``plain``: without the plug-in. ``in-model``: delivery "inject": the
plug-in runs the model's lower layers over each whole prompt. ``native``: delivery "native": vLLM
prefills the prompt and finds in its prefix cache what earlier prompts left there. ``auto``: the
default, which chooses between them for each prompt, or leaves it as it is. The ways take turns at
each repetition of a scenario, and their order rotates. Prompts are random ids, new ones in each
repetition, which therefore shares nothing with the one before. A chat continues with the answers of
its own engine, which all have ``--answer`` tokens.

TTFT is the wall time from adding a request to its first token; ``ttft_sum_s`` adds up all prompts
of a scenario, ``later_ttft_s`` is the median of those after the first. ``times_plain`` is the
median of plain / own sums of the same repetition. ``cached_tokens`` are those of the last prompt
that its prefill found in the prefix cache; an in-model job looks for none.

``blocks`` are the KV blocks that the last prompt holds at most while it decodes, without what only
the prefix cache remembers; ``prefill_blocks`` those until its first token, which include its job's.
``at_once`` is what the whole cache holds of requests like the last one while all of them decode, if
they share nothing: plain requests on one document share its blocks, so of those more fit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from setting import Child, common_options, fill_in, report_of, start, table, write

WAYS: dict[str, dict[str, Any] | None] = {
    "plain": None, "in-model": {"delivery": "inject"}, "native": {"delivery": "native"},
    "auto": {"delivery": "auto"},
}
SCENARIOS = ("chat", "questions", "agent")


@dataclass(frozen=True)
class Session:
    """Prompts that share a prefix.

    Attributes:
        start: what all of them begin with. parts: what each of them adds to it.
        grows: earlier parts stay in the later prompts. answers: earlier answers do, too.
    """

    start: list[int]
    parts: list[list[int]]
    grows: bool = True
    answers: bool = False


class Meter:
    """Sends one request at a time through an in-process engine, and counts its KV blocks."""

    def __init__(self, llm: Any) -> None:
        self.engine, self.sent = llm.llm_engine, 0
        scheduler = self.engine.engine_core.engine_core.scheduler
        self.pool = scheduler.kv_cache_manager.block_pool
        self.idle: int = self.pool.get_num_free_blocks()
        self.held: list[int] = []
        own = scheduler.schedule

        def schedule(*args: Any, **options: Any) -> Any:
            output = own(*args, **options)
            self.held.append(self.idle - self.pool.get_num_free_blocks())
            return output

        # Counted inside the step: the last one lets all blocks go before it returns.
        scheduler.schedule = schedule

    def ask(self, ids: list[int], params: Any) -> tuple[list[int], dict[str, Any]]:
        """The answer's ids, and what the request took."""
        if self.pool.get_num_free_blocks() != self.idle:
            raise RuntimeError("an earlier request left KV blocks behind, so none can be counted")
        self.sent += 1
        self.held, before, ttft, last = [], 0, None, None
        begin = time.perf_counter()
        self.engine.add_request(str(self.sent), {"prompt_token_ids": ids}, params)
        while self.engine.has_unfinished_requests():
            for last in self.engine.step():
                if ttft is None and last.outputs[0].token_ids:
                    ttft = time.perf_counter() - begin
                    before, self.held = max(self.held), []
        seconds = time.perf_counter() - begin
        assert last is not None
        said = report_of(last)
        return list(last.outputs[0].token_ids), {
            "tokens": len(ids), "ttft_s": ttft, "seconds": seconds,
            "kept_tokens": said.get("kept_tokens", len(ids)),
            # The in-model delivery's own blocks are found in the cache as well, but no prefill's.
            "cached_tokens": said.get("prefill_cached_tokens") if said else last.num_cached_tokens,
            "blocks": max(self.held), "prefill_blocks": before, "total_blocks": self.idle,
            "report": said,
        }


def serve(
    pipe: Any, model: str, plugin: dict[str, Any] | None, options: dict[str, Any], answer: int
) -> None:
    """Child process: one engine, one session per message, answers what each prompt took."""
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would take the place of --kv-gib
    llm = start(model, plugin, **options)
    from vllm import SamplingParams

    meter = Meter(llm)
    params = SamplingParams(
        max_tokens=answer, temperature=0.0, ignore_eos=True, detokenize=False
    )
    pipe.send("ready")
    while (session := pipe.recv()) is not None:
        taken, trace = [], list(session.start)
        for part in session.parts:
            prompt = trace + part
            said, one = meter.ask(prompt, params)
            taken.append(one)
            if session.grows:
                trace = prompt + (said if session.answers else [])
        pipe.send(taken)


def make_session(args: argparse.Namespace, scenario: str, run: int, vocabulary: int) -> Session:
    """One repetition's prompts, as many as fit."""
    chooser = random.Random(f"{scenario} {run}")

    def ids(count: int) -> list[int]:
        return [chooser.randrange(20, vocabulary) for _ in range(count)]

    if scenario == "agent":
        whole = Session(ids(args.trace), [ids(args.in_flight_tokens) for _ in range(args.steps)])
    else:
        chat = scenario == "chat"
        count = args.turns if chat else args.questions
        document = ids(args.document)
        whole = Session(document, [ids(args.question) for _ in range(count)], chat, chat)
    fit, length = 0, len(whole.start)
    for part in whole.parts:
        if length + len(part) + args.answer > args.max_model_len:
            break
        fit += 1
        length += whole.grows * len(part) + whole.answers * args.answer
    if not fit:
        raise SystemExit(f"{scenario}: not even the first prompt fits --max-model-len")
    return replace(whole, parts=whole.parts[:fit])


def demand_all_compressed(way: str, taken: list[dict[str, Any]]) -> None:
    """End the benchmark if a prompt was not, unless that is the way's own choice."""
    for number, one in enumerate(taken, 1):
        if way not in ("plain", "auto") and one["report"].get("status") != "compressed":
            raise SystemExit(f"{way}: prompt {number} was not compressed: {one['report']}")


def measure(
    args: argparse.Namespace, scenario: str, children: dict[str, Child], vocabulary: int
) -> dict[str, list[list[dict[str, Any]]]]:
    """What each prompt of each repetition took, by way."""
    found: dict[str, list[list[dict[str, Any]]]] = {way: [] for way in children}
    for run in range(args.runs):
        session = make_session(args, scenario, run, vocabulary)
        first = run % len(children)
        for way in [*list(children)[first:], *list(children)[:first]]:
            taken = children[way].ask(session)
            demand_all_compressed(way, taken)
            found[way].append(taken)
    return found


def sums(runs: list[list[dict[str, Any]]]) -> list[float]:
    """Seconds to the first token over all prompts, of each repetition."""
    return [sum(one["ttft_s"] for one in run) for run in runs]


def row(
    scenario: str, way: str, runs: list[list[dict[str, Any]]], plain: list[float]
) -> dict[str, Any]:
    """Medians over the repetitions; blocks and tokens are those of the last prompt."""
    own = sums(runs)
    later = [statistics.median(one["ttft_s"] for one in run[1:]) for run in runs if run[1:]]

    def middle(name: str) -> Any:
        values = [run[-1][name] for run in runs]
        return "" if None in values else statistics.median_low(values)

    return {
        "scenario": scenario, "way": way, "prompts": len(runs[0]), "tokens": middle("tokens"),
        "kept_tokens": middle("kept_tokens"), "cached_tokens": middle("cached_tokens"),
        "ttft_sum_s": statistics.median(own), "fastest_s": min(own), "slowest_s": max(own),
        "times_plain": statistics.median(p / q for p, q in zip(plain, own, strict=True)),
        "later_ttft_s": statistics.median(later) if later else "",
        "blocks": middle("blocks"), "prefill_blocks": middle("prefill_blocks"),
        "total_blocks": middle("total_blocks"),
        "at_once": middle("total_blocks") // middle("blocks"),
    }


def options_of(parser: argparse.ArgumentParser) -> None:
    """The scenarios and the engines."""
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), help="some of them")
    parser.add_argument("--document", type=int, default=4000, help="tokens of a document")
    parser.add_argument("--question", type=int, default=40, help="tokens of a question")
    parser.add_argument("--answer", type=int, default=32, help="tokens of an answer, at least 2")
    parser.add_argument("--turns", type=int, default=10, help="questions of a chat")
    parser.add_argument("--questions", type=int, default=20, help="on one document")
    parser.add_argument("--trace", type=int, default=1000, help="tokens an agent begins with")
    parser.add_argument("--steps", type=int, default=20, help="of an agent, as many as fit")
    parser.add_argument("--step-tokens", type=int, default=800, help="that each step appends")
    parser.add_argument("--runs", type=int, default=3, help="repetitions")
    ways_option(parser)
    parser.add_argument("--warm-up", type=int, default=1024, help="tokens of a first prompt, "
                        "which is not counted")
    parser.add_argument("--max-model-len", type=int, default=8192)
    parser.add_argument("--chunk", type=int, default=2048, help="prompt tokens of one step")
    parser.add_argument("--kv-gib", type=float, default=1.0, help="KV cache of each engine, GiB")


def ways_option(parser: argparse.ArgumentParser) -> None:
    """Which engines are compared; ``plain`` is always one of them."""
    parser.add_argument("--ways", default=",".join(WAYS), help="plain and some of the others")


def start_ways(
    args: argparse.Namespace, longest: int
) -> tuple[dict[str, Any], dict[str, Child], int]:
    """Engines of all ways with equal settings.

    Args:
        longest: tokens of the longest request.

    Returns:
        Their options, the engines by way, and the size of the model's vocabulary.
    """
    options = {
        "dtype": args.dtype, "max_model_len": longest,
        "max_num_batched_tokens": args.chunk, "kv_cache_memory_bytes": int(args.kv_gib * 2**30),
        "enable_prefix_caching": True, "enforce_eager": args.enforce_eager, "max_num_seqs": 8,
    }
    common = {"ratio": args.ratio, "min_tokens": 2, "encoder_chunk_tokens": args.chunk}
    children = {
        way: Child(
            serve, args.model, None if own is None else {**common, **own}, options, args.answer
        )
        for way, own in WAYS.items() if way in args.ways.split(",")
    }
    vocabulary = json.loads((Path(args.model) / "config.json").read_text())["vocab_size"]
    return options, children, vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options_of(parser)
    common_options(parser)
    args = parser.parse_args()
    scenarios = args.scenarios.split(",")
    if not set(scenarios) <= set(SCENARIOS):
        parser.error(f"--scenarios: some of {', '.join(SCENARIOS)}")
    if args.answer < 2:
        parser.error("--answer: blocks are counted after the first token, so at least 2")
    fill_in(args)
    options, children, vocabulary = start_ways(args, args.max_model_len)
    chooser = random.Random("warm-up")
    size = min(args.warm_up, args.max_model_len - args.answer)
    warm_up = Session([], [[chooser.randrange(20, vocabulary) for _ in range(size)]])
    for way, child in children.items():
        demand_all_compressed(way, child.ask(warm_up))
    rows: list[dict[str, Any]] = []
    raw: dict[str, Any] = {}
    for scenario in scenarios:
        raw[scenario] = measure(args, scenario, children, vocabulary)
        plain = sums(raw[scenario]["plain"])
        rows += [row(scenario, way, runs, plain) for way, runs in raw[scenario].items()]
        write(
            args.json, model=Path(args.model).name, dtype=args.dtype, eager=args.enforce_eager,
            ratio=args.ratio, options=options, rows=rows, raw=raw,
        )
    for child in children.values():
        child.stop()
    table(rows)


if __name__ == "__main__":
    main()
