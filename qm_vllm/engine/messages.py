"""What travels between the scheduler side and the worker side, per step: plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qm_vllm.config import QuickMergeConfig
from qm_vllm.turns import Turn


@dataclass(frozen=True)
class JobSpec:
    """One prompt to compress.

    Attributes:
        id: of this run alone. Results are matched by it, so that what an aborted or outdated run
            found is never taken for that of an equal one.
        key: equal keys mean equal results.
        encoder_layers: E. 0: score the token embeddings (a decoder without an adapter, prefill
            delivery).
        block_size: K is rounded to a multiple of this plus one; None: not rounded.
        turns: of a conversation, that stay whole.
        kept: what the job kept the first time, if it runs again and must keep the same.
        blocks: of the KV cache, which are the job's alone until its result is delivered: one for
            each block_size tokens of the prompt. Empty for the prefill delivery.
    """

    id: int
    key: str
    token_ids: list[int]
    config: QuickMergeConfig
    encoder_layers: int
    score_layers: tuple[int, int]
    special_positions: list[int]
    block_size: int | None
    turns: tuple[Turn, ...] = ()
    kept: tuple[int, ...] | None = None
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class BlockCopy:
    """Whole blocks of a finished job that go into a request's own blocks."""

    request_id: str
    sources: list[int]
    targets: list[int]


@dataclass
class StepMessage:
    """Scheduler side to worker side.

    Copies are made before the step's forward, releases come before new jobs, which run after it.
    """

    jobs: list[JobSpec] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)
    releases: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class JobResult:
    """What a job found: kept source positions (ascending) and figures, or an error."""

    kept: list[int] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] | None = None
    error: str | None = None


@dataclass
class WorkerMessage:
    """Worker side to scheduler side: results by the job's id, and how many jobs are held."""

    results: dict[int, JobResult] = field(default_factory=dict)
    held: int = 0

    def merged(self, other: WorkerMessage) -> WorkerMessage:
        """What two tensor-parallel ranks say together: any failure or difference is an error."""
        results = dict(self.results)
        for job, theirs in other.results.items():
            ours = results.get(job)
            if ours is None or theirs.error:
                results[job] = theirs
            elif not ours.error and ours.kept != theirs.kept:
                results[job] = JobResult(error="tensor-parallel ranks kept different tokens")
        return WorkerMessage(results, max(self.held, other.held))


@dataclass(frozen=True)
class WorkerStart:
    """What a worker says once: bytes that running jobs may hold, and why layers cannot be run."""

    job_bytes: int
    problem: str | None
