"""The plug-in's counts: added up, summed for the log line, and exposed by a Prometheus client."""

from __future__ import annotations

from types import SimpleNamespace

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from qm_vllm.engine.metrics import COUNTERS, QuickMergePromMetrics, QuickMergeStats
from qm_vllm.engine.requests.tally import Tally


def tally() -> Tally:
    made = Tally()
    made.compressed(1000, 385, 32)
    made.compressed(100, 33, 32)
    made.untouched("short")
    made.job(0.5)
    made.job(1.5)
    made.job(None)
    made.counts["memo_hits"] += 1
    made.level(jobs_waiting=2, jobs_live=1)
    return made


def test_what_is_taken_is_gone():
    made = tally()
    assert made.take() is not None
    assert made.take() is None


def test_two_takes_add_up_and_the_later_level_counts():
    one, later = tally(), Tally()
    later.untouched("short")
    later.level(jobs_waiting=0)
    stats = QuickMergeStats(one.take()).aggregate(QuickMergeStats(later.take()))
    assert stats.data["fallbacks"] == {"short": 2}
    assert stats.data["gauges"] == {"jobs_waiting": 0, "jobs_live": 1}
    assert stats.reduce() == {
        "compressed requests": 2, "untouched requests": 2, "source tokens": 1100,
        "kept tokens": 418, "blocks saved": (32 - 13) + (4 - 2), "memo hits": 1,
        "mean job seconds": 1.0,
    }
    stats.reset()
    assert stats.is_empty()
    assert QuickMergeStats({}).reduce()["kept tokens"] == 0


def test_a_prometheus_client_shows_them():
    registry = CollectorRegistry()

    def kind(of):
        def make(*args, **options):
            return of(*args, registry=registry, **options)
        return make

    types = {Counter: kind(Counter), Gauge: kind(Gauge), Histogram: kind(Histogram)}
    config = SimpleNamespace(kv_transfer_config=None)
    labels = ["model_name", "engine"]
    metrics = QuickMergePromMetrics(config, types, labels, {0: ["m", "0"]})
    metrics.observe(QuickMergeStats(tally().take()).to_dict())
    metrics.observe(QuickMergeStats(tally().take()).to_dict())
    where = {"model_name": "m", "engine": "0"}

    def value(name, **more):
        return registry.get_sample_value(f"qm_vllm:{name}", where | more)

    assert value("source_tokens_total") == 2200
    assert value("requests_total", outcome="compressed") == 4
    assert value("requests_total", outcome="untouched") == 2
    assert value("fallbacks_total", reason="short") == 2
    assert value("jobs_failed_total") == 2
    assert value("job_seconds_sum") == 4
    assert value("jobs_waiting") == 2
    assert all(value(f"{name}_total") is not None for name in COUNTERS)


def test_a_second_engine_of_a_process_takes_the_names_over():
    config = SimpleNamespace(kv_transfer_config=None)
    types = {Counter: Counter, Gauge: Gauge, Histogram: Histogram}
    for model in ("first", "second"):
        made = QuickMergePromMetrics(config, types, ["model_name"], {0: [model]})
    made.observe(QuickMergeStats(tally().take()).to_dict())
    name = "qm_vllm:source_tokens_total"
    assert REGISTRY.get_sample_value(name, {"model_name": "second"}) == 1100
    assert REGISTRY.get_sample_value(name, {"model_name": "first"}) is None
