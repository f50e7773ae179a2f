"""Bases of what a connector counts: one step's counts, and their metrics in ``/metrics``."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import suppress
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

_registered: list[Any] = []
"""Metrics of the last engine of this process in Prometheus's own registry."""


class StatsBase(KVConnectorStats):
    """Counts of one or more steps, in ``data``: plain values that travel between processes."""

    data: dict[str, Any]


class PromMetricsBase(KVConnectorPromMetrics):
    """Makes metrics and hands each step's counts to :meth:`count`."""

    def __init__(
        self, vllm_config: Any, metric_types: Any, labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        _make_room()
        self.labelnames = labelnames
        self.make()

    @abstractmethod
    def make(self) -> None:
        """Make the metrics, by :meth:`counter`, :meth:`gauge` and :meth:`histogram`."""

    @abstractmethod
    def count(self, data: dict[str, Any], labels: list[object]) -> None:
        """Add one step's counts of the engine with these labels."""

    def counter(self, name: str, text: str, label: str | None = None) -> Any:
        """A counter, with a label of its own beside the engine's if it is named."""
        labels = [*self.labelnames, *([label] if label else [])]
        return _noted(self._counter_cls(name, text, labelnames=labels))

    def gauge(self, name: str, text: str) -> Any:
        """A gauge that shows the newest value of all processes."""
        return _noted(self._gauge_cls(
            name, text, labelnames=self.labelnames, multiprocess_mode="mostrecent"
        ))

    def histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Any:
        """A histogram."""
        return _noted(
            self._histogram_cls(name, text, labelnames=self.labelnames, buckets=buckets)
        )

    def engines(self) -> list[list[object]]:
        """Label values of each engine."""
        return list(self.per_engine_labelvalues.values())

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """vLLM's hook."""
        self.count(transfer_stats_data, self.per_engine_labelvalues[engine_idx])


def _noted(metric: Any) -> Any:
    _registered.append(metric)
    return metric


def _make_room() -> None:
    """Take the former engine's metrics out of the registry, as vLLM does with its own."""
    from prometheus_client import REGISTRY

    while _registered:
        with suppress(KeyError):  # not there: another registry, or Ray's metrics
            REGISTRY.unregister(_registered.pop())
