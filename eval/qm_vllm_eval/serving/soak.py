"""Mixed load for a while, then the same from the idle server: what differs, what leaked."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from qm_vllm_eval.serving.ask import COMPLETIONS, Ask
from qm_vllm_eval.serving.client import Answer, send
from qm_vllm_eval.serving.server import RemoteServer
from qm_vllm_eval.serving.traffic import Traffic

FLAGS = (
    "--ratio", "0.4", "--dtype", "float32", "--block-size", "32", "--max-model-len", "2048",
    "--enforce-eager", "--encoder-chunk-tokens", "512",
)
"""Of a server to soak: float32, so that answers can be compared, and prompts in several steps."""
FORM_FLAGS = (
    "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
)
"""Of a random model, which would write spaces between the parts of a form until max_tokens."""
AGENT_FLAGS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", *FORM_FLAGS)
"""For its requests with tools and forms."""
NUM_BLOCKS = 70
"""Of its KV cache: small enough to preempt."""
BY_KIND = ("requests", "streamed", "hinted", "aborted", "calls", "checked_alone")
"""What is counted of each kind of request; ``calls``: of tools, in its answers."""
LOAD_SHARE = 0.6
"""Of the time; the rest is for the same requests alone."""


@dataclass
class Soak:
    """One run against a server that was started for it; :meth:`run` gives the figures.

    Args:
        seconds: of load and of checking together. clients: requests in flight.
    """

    server: RemoteServer
    traffic: Traffic
    seconds: float
    clients: int
    seed: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(
        ("requests", "aborted", "bad_requests", "bad_requests_not_4xx", "failed",
         "engine_deaths"), 0,
    ))
    by_kind: dict[str, Counter[str]] = field(default_factory=dict)
    answers: dict[str, tuple[Ask, set[tuple[str, ...]]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """All figures. Nobody else may use the server meanwhile."""
        memory, before = self.server.memory_mib(), self.server.metrics()
        asyncio.run(self._load())
        leaks = self._leaks()
        checked, mismatches = asyncio.run(self._alone())
        metrics = self.server.metrics()
        metrics.subtract(before)
        self.counts["engine_deaths"] += not self.server.alive()
        return {
            **self.counts,
            "preempted": int(metrics["vllm:num_preemptions_total"]),
            "memo_hits": int(metrics["qm_vllm:memo_hits_total"]),
            "jobs": int(metrics["qm_vllm:jobs_total"]),
            "source_tokens": int(metrics["qm_vllm:source_tokens_total"]),
            "kept_tokens": int(metrics["qm_vllm:kept_tokens_total"]),
            "jobs_failed": int(metrics["qm_vllm:jobs_failed_total"]),
            **leaks,
            "checked_alone": checked,
            "mismatches": mismatches,
            "by_kind": {kind: dict(self.by_kind[kind]) for kind in sorted(self.by_kind)},
            "memory_mib_before": round(memory),
            "memory_mib_after": round(self.server.memory_mib()),
            "problems": self.problems[:20],
            "differences": self.differences[:10],
        }

    async def _load(self) -> None:
        deadline = time.monotonic() + LOAD_SHARE * self.seconds
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(None)) as session:
            # However fast the machine is, some requests are preempted.
            crowd = self.traffic.crowd(self.server.num_blocks())
            answers = await asyncio.gather(
                *(send(session, self.server.address, ask) for ask in crowd)
            )
            for ask, answer in zip(crowd, answers, strict=True):
                await self._note(ask, answer)
            await asyncio.gather(*(
                self._client(session, random.Random(self.seed * 1000 + i), deadline)
                for i in range(self.clients)
            ))

    async def _client(
        self, session: aiohttp.ClientSession, pick: random.Random, deadline: float
    ) -> None:
        while time.monotonic() < deadline and not self.counts["engine_deaths"]:
            ask = self.traffic.next()
            hang_up = pick.uniform(0.0, 2.0) if pick.random() < 0.15 and not ask.bad else None
            copies = 3 if pick.random() < 0.05 and hang_up is None else 1
            got = await asyncio.gather(
                *(send(session, self.server.address, ask, hang_up) for _ in range(copies))
            )
            for answer in got:
                await self._note(ask, answer)

    async def _note(self, ask: Ask, answer: Answer) -> None:
        self.counts["requests"] += 1
        kind = self.by_kind.setdefault(ask.kind, Counter(dict.fromkeys(BY_KIND, 0)))
        kind.update(
            requests=1, streamed=bool(ask.body.get("stream")), hinted=ask.hinted,
            aborted=answer.aborted, calls=answer.calls,
        )
        if answer.aborted:
            self.counts["aborted"] += 1
        elif ask.bad:
            self.counts["bad_requests"] += 1
            if not 400 <= answer.status < 500:
                self.counts["bad_requests_not_4xx"] += 1
                self.problems.append(f"not refused ({answer.status}): {str(ask.body)[-200:]}")
        elif answer.status != 200 or answer.problem:
            self.counts["failed"] += 1
            self.problems.append(f"failed ({answer.status}): {answer.problem}")
            if answer.status == 0 and not await asyncio.to_thread(self.server.alive):
                self.counts["engine_deaths"] += 1
        elif ask.greedy:
            self.answers.setdefault(ask.key, (ask, set()))[1].add(answer.texts)

    def _leaks(self) -> dict[str, int]:
        """What is still held once nothing runs; a few small requests deliver the last releases."""
        self.server.reset_caches()
        body = {"model": self.traffic.model, "prompt": "One.", "max_tokens": 4}
        metrics = self.server.metrics()
        for _ in range(20):
            self.server.ask(COMPLETIONS, body)
            metrics = self.server.metrics()
            if not metrics["vllm:num_requests_running"] + metrics["vllm:kv_cache_usage_perc"]:
                break
            time.sleep(0.2)
        return {
            "leaked_blocks": round(metrics["vllm:kv_cache_usage_perc"] * self.server.num_blocks()),
            "live_artifacts": int(max(
                metrics["qm_vllm:worker_jobs"], metrics["qm_vllm:jobs_live"],
            ) + metrics["qm_vllm:jobs_waiting"]),
        }

    async def _alone(self) -> tuple[int, int]:
        """Each request again, one at a time, none of whose blocks or results are cached."""
        deadline = time.monotonic() + (1 - LOAD_SHARE) * self.seconds
        asked = sorted(self.answers.items())
        random.Random(self.seed).shuffle(asked)
        checked = mismatches = 0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(None)) as session:
            for _, (ask, seen) in asked:
                if time.monotonic() > deadline:
                    break
                alone = Ask(ask.path, ask.body | {"cache_salt": f"alone {checked}"})
                got = await send(session, self.server.address, alone)
                checked += 1
                self.by_kind[ask.kind]["checked_alone"] += 1
                if seen != {got.texts}:
                    mismatches += 1
                    self.differences.append({
                        "path": ask.path, "body": ask.body, "under_load": sorted(seen),
                        "alone": got.texts, "alone_problem": got.problem,
                    })
        return checked, mismatches
