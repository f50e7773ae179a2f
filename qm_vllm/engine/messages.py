"""What travels between the scheduler side and the worker side of the connector, per step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from qm_vllm.config import QuickMergeConfig
from qm_vllm.turns import Turn


@dataclass(frozen=True)
class JobSpec:
    """One prompt to compress; equal keys mean equal results."""

    key: str
    token_ids: list[int]
    config: QuickMergeConfig
    encoder_layers: int
    """E. 0: score the token embeddings (a decoder without an adapter, prefill delivery)."""
    score_layers: tuple[int, int]
    special_positions: list[int]
    block_size: int | None
    """K is rounded to a multiple of this plus one; None: not rounded."""
    turns: tuple[Turn, ...] = ()
    """Turns of a conversation that stay whole."""
    kept: tuple[int, ...] | None = None
    """What the job kept the first time, if it runs again and must keep the same."""


@dataclass(frozen=True)
class LoadSpec:
    """Write artefact rows ``[start, stop)`` of a job into a request's blocks."""

    request_id: str
    key: str
    block_ids: list[int]
    start: int
    stop: int


@dataclass
class QuickMergeMetadata(KVConnectorMetadata):
    """Scheduler side to worker side. ``releases`` are applied after ``loads``."""

    jobs: list[JobSpec] = field(default_factory=list)
    loads: list[LoadSpec] = field(default_factory=list)
    releases: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class JobResult:
    """What a job found: kept source positions (ascending) and figures, or an error."""

    key: str
    kept: list[int] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] | None = None
    error: str | None = None


@dataclass
class QuickMergeWorkerMetadata(KVConnectorWorkerMetadata):
    """Worker side to scheduler side: finished jobs by key, and how many jobs are held."""

    results: dict[str, JobResult] = field(default_factory=dict)
    held: int = 0

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        """Tensor-parallel ranks run the same jobs; any failure or difference is an error."""
        assert isinstance(other, QuickMergeWorkerMetadata)
        merged = dict(self.results)
        for key, theirs in other.results.items():
            ours = merged.get(key)
            if ours is None or theirs.error:
                merged[key] = theirs
            elif not ours.error and ours.kept != theirs.kept:
                merged[key] = JobResult(key, error="tensor-parallel ranks kept different tokens")
        return QuickMergeWorkerMetadata(merged, max(self.held, other.held))
