"""What the plug-in counts, for vLLM's own ``/metrics`` and its log line (connector hooks)."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

COUNTERS = {
    "source_tokens": "Prompt tokens of requests that were compressed.",
    "kept_tokens": "Prompt tokens that stayed of these.",
    "blocks_saved": "KV-cache blocks that these prompts did not need.",
    "jobs": "Compression jobs that a worker has done.",
    "jobs_failed": "Compression jobs that failed; their prompts were prefilled as usual.",
    "memo_hits": "Requests whose prompt had been compressed before, with the same options.",
}
"""Name and meaning; each is exposed as ``qm_vllm:NAME_total``."""
GAUGES = {
    "jobs_waiting": "Compression jobs that no worker has begun.",
    "jobs_live": "Compression jobs whose states or KV a worker holds, as the scheduler counts.",
    "worker_jobs": "The same as the worker counts.",
}
REQUESTS, FALLBACKS, SECONDS = "requests", "fallbacks", "job_seconds"
BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


@dataclass
class Tally:
    """Counts since the last :meth:`take`; plain numbers, so that they travel between processes."""

    counts: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    gauges: dict[str, int] = field(default_factory=dict)

    def untouched(self, kind: str) -> None:
        """A request went to plain vLLM, for a reason of this kind."""
        self.fallbacks[kind] += 1

    def compressed(self, source: int, kept: int, block_size: int) -> None:
        """A request was resized from ``source`` to ``kept`` tokens."""
        self.counts["compressed"] += 1
        self.counts["source_tokens"] += source
        self.counts["kept_tokens"] += kept
        self.counts["blocks_saved"] += -(-source // block_size) - -(-kept // block_size)

    def job(self, seconds: float | None) -> None:
        """A job ended: its worker seconds, or None if it failed."""
        self.counts["jobs" if seconds is not None else "jobs_failed"] += 1
        if seconds is not None:
            self.seconds.append(seconds)

    def level(self, **gauges: int) -> None:
        """Set gauges; a change alone is worth reporting."""
        self.gauges |= gauges

    def take(self) -> QuickMergeStats | None:
        """What was counted since the last call, or None if nothing was."""
        data: dict[str, Any] = {
            "counts": dict(self.counts), "fallbacks": dict(self.fallbacks),
            "seconds": list(self.seconds), "gauges": dict(self.gauges),
        }
        self.counts.clear()
        self.fallbacks.clear()
        self.seconds.clear()
        self.gauges.clear()
        stats = QuickMergeStats(data)
        return None if stats.is_empty() else stats


class QuickMergeStats(KVConnectorStats):
    """One or more takes, added up."""

    def reset(self) -> None:
        self.data: dict[str, Any] = {}

    def is_empty(self) -> bool:
        return not any(self.data.values())

    def aggregate(self, other: KVConnectorStats) -> QuickMergeStats:
        merged: dict[str, Any] = {
            name: dict(Counter(self.data.get(name, {})) + Counter(other.data.get(name, {})))
            for name in ("counts", "fallbacks")
        }
        merged["seconds"] = [*self.data.get("seconds", ()), *other.data.get("seconds", ())]
        merged["gauges"] = self.data.get("gauges", {}) | other.data.get("gauges", {})
        return QuickMergeStats(merged)

    def reduce(self) -> dict[str, int | float]:
        """The figures of vLLM's periodic log line."""
        counts, seconds = Counter(self.data.get("counts", {})), self.data.get("seconds", [])
        line: dict[str, int | float] = {
            "compressed requests": counts["compressed"],
            "untouched requests": sum(self.data.get("fallbacks", {}).values()),
            "source tokens": counts["source_tokens"],
            "kept tokens": counts["kept_tokens"],
            "blocks saved": counts["blocks_saved"],
            "memo hits": counts["memo_hits"],
        }
        if seconds:
            line["mean job seconds"] = round(sum(seconds) / len(seconds), 3)
        return line


_registered: list[Any] = []
"""Metrics of the last engine of this process in Prometheus's own registry."""


def _make_room() -> None:
    """Take the former engine's metrics out of the registry, as vLLM does with its own."""
    from prometheus_client import REGISTRY

    while _registered:
        with suppress(KeyError):  # not there: another registry, or Ray's metrics
            REGISTRY.unregister(_registered.pop())


class QuickMergePromMetrics(KVConnectorPromMetrics):
    """Registers the metrics and adds each step's counts to them."""

    def __init__(
        self, vllm_config: Any, metric_types: Any, labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        _make_room()
        self.counters = {
            name: self._counter_cls(f"qm_vllm:{name}", text, labelnames=labelnames)
            for name, text in COUNTERS.items()
        }
        self.requests = self._counter_cls(
            f"qm_vllm:{REQUESTS}", "Requests by what became of them.",
            labelnames=[*labelnames, "outcome"],
        )
        self.fallbacks = self._counter_cls(
            f"qm_vllm:{FALLBACKS}", "Requests that went to plain vLLM, by reason.",
            labelnames=[*labelnames, "reason"],
        )
        self.seconds = self._histogram_cls(
            f"qm_vllm:{SECONDS}", "Worker time of a compression job.", labelnames=labelnames,
            buckets=BUCKETS,
        )
        self.gauges = {
            name: self._gauge_cls(
                f"qm_vllm:{name}", text, labelnames=labelnames, multiprocess_mode="mostrecent"
            )
            for name, text in GAUGES.items()
        }

        _registered.extend([
            *self.counters.values(), self.requests, self.fallbacks, self.seconds,
            *self.gauges.values(),
        ])
        for labels in self.per_engine_labelvalues.values():  # shown as 0 before the first event
            for counter in self.counters.values():
                counter.labels(*labels)
            for gauge in self.gauges.values():
                gauge.labels(*labels)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        labels = self.per_engine_labelvalues[engine_idx]
        data = transfer_stats_data
        counts: dict[str, int] = data.get("counts", {})
        for name, value in counts.items():
            if name in self.counters:
                self.counters[name].labels(*labels).inc(value)
        if counts.get("compressed"):
            self.requests.labels(*labels, "compressed").inc(counts["compressed"])
        for reason, value in data.get("fallbacks", {}).items():
            self.requests.labels(*labels, "untouched").inc(value)
            self.fallbacks.labels(*labels, reason).inc(value)
        for seconds in data.get("seconds", ()):
            self.seconds.labels(*labels).observe(seconds)
        for name, value in data.get("gauges", {}).items():
            self.gauges[name].labels(*labels).set(value)
