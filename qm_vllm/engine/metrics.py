"""What the plug-in counts, in vLLM's own ``/metrics``."""

from __future__ import annotations

from typing import Any

from qm_vllm.engine.requests.tally import added, figures
from qm_vllm_patches.metrics import PromMetricsBase, StatsBase

COUNTERS = {
    "source_tokens": "Prompt tokens of requests that were compressed.",
    "kept_tokens": "Prompt tokens that stayed of these.",
    "blocks_saved": "KV-cache blocks that these prompts did not need.",
    "jobs": "Compression jobs that a worker has done.",
    "jobs_failed": "Compression jobs that failed; their prompts were prefilled as usual.",
    "shadow_prefills": "Prompts that vLLM prefilled for jobs.",
    "shadow_tokens": "Tokens of these prompts, and of the hints behind them.",
    "shadow_cached_tokens": "Tokens of these that were found in the prefix cache.",
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


class QuickMergeStats(StatsBase):
    """One or more steps' counts, as a :class:`~qm_vllm.engine.requests.tally.Tally` took them."""

    def reset(self) -> None:
        self.data = {}

    def is_empty(self) -> bool:
        return not any(self.data.values())

    def aggregate(self, other: StatsBase) -> QuickMergeStats:
        return QuickMergeStats(added(self.data, other.data))

    def reduce(self) -> dict[str, int | float]:
        """The figures of vLLM's periodic log line."""
        return figures(self.data)


class QuickMergePromMetrics(PromMetricsBase):
    """Makes the metrics and adds each step's counts to them."""

    def make(self) -> None:
        """All of them, each shown as 0 before its first event."""
        self.counters = {
            name: self.counter(f"qm_vllm:{name}", text) for name, text in COUNTERS.items()
        }
        self.requests = self.counter(
            f"qm_vllm:{REQUESTS}", "Requests by what became of them.", "outcome"
        )
        self.fallbacks = self.counter(
            f"qm_vllm:{FALLBACKS}", "Requests that went to plain vLLM, by reason.", "reason"
        )
        self.seconds = self.histogram(
            f"qm_vllm:{SECONDS}", "Worker time of a compression job.", BUCKETS
        )
        self.gauges = {
            name: self.gauge(f"qm_vllm:{name}", text) for name, text in GAUGES.items()
        }
        for labels in self.engines():
            for metric in (*self.counters.values(), *self.gauges.values()):
                metric.labels(*labels)

    def count(self, data: dict[str, Any], labels: list[object]) -> None:
        """Add one step's counts, as a :class:`~qm_vllm.engine.requests.tally.Tally` took them."""
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
