"""What travels between the scheduler side and the worker side, per step: plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from qm_vllm.compress import protected_positions
from qm_vllm.config import QuickMergeConfig
from qm_vllm.layers import WINDOW_QUERIES
from qm_vllm.turns import Turn


@dataclass(frozen=True)
class JobSpec:
    """One prompt to compress.

    A hint stands behind the prompt's tokens while these are read: it looks at them, nothing of them
    depends on it, and none of its own positions stays.

    Attributes:
        token_ids: of the prompt alone. N is their number.
        id: of this run alone. Results are matched by it, so that what an aborted or outdated run
            found is never taken for that of an equal one.
        key: equal keys mean equal results.
        encoder_layers: E. 0: score the token embeddings (a decoder without an adapter, prefill
            delivery).
        block_size: K is rounded to a multiple of this plus one; None: not rounded.
        turns: of a conversation, that stay whole.
        kept: what the job kept the first time, if it runs again and must keep the same.
        blocks: of the KV cache, which are the job's alone until its result is delivered: one for
            each block_size tokens of prompt and hint; with the native delivery those of K - 1
            positions, one KV-cache group's after another's. Empty for the prefill delivery.
        group_blocks: how many of them each group has; only with the native delivery.
        group_kept: how many tokens the layers of each group keep, K of the request the most of
            them; () where all keep K.
        hint: token ids of what will be asked, H of them; () where nothing is said.
        parts: bounds 0, ..., N of what is read apart (:mod:`qm_vllm.engine.parts`); () where the
            prompt is read as a whole.
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
    group_blocks: tuple[int, ...] = ()
    group_kept: tuple[int, ...] = ()
    hint: tuple[int, ...] = ()
    parts: tuple[int, ...] = ()

    @property
    def read_ids(self) -> list[int]:
        """What the model reads: the prompt, and the hint behind it."""
        return [*self.token_ids, *self.hint] if self.hint else self.token_ids

    @property
    def rows(self) -> int:
        """How many tokens that is: N + H."""
        return len(self.token_ids) + len(self.hint)

    @property
    def window(self) -> int:
        """How many of the last of them say what stays; a hint alone where the prompt's end may
        not."""
        if self.hint and not self.config.query_visible:
            return len(self.hint)
        return min(WINDOW_QUERIES, self.rows)

    @property
    def native(self) -> bool:
        """vLLM prefills the prompt itself."""
        return self.config.delivery == "native"

    @property
    def heads_choose(self) -> bool:
        """Each KV head keeps some tokens of its own choice."""
        return self.native and self.config.head_share > 0

    @property
    def looks(self) -> bool:
        """The last queries must be seen: for the choice, or for that of the heads."""
        return self.kept is None or self.heads_choose or bool(self.group_kept)

    def mean_kept(self, kept: int) -> int:
        """What a layer keeps in the mean, of a request with K positions; groups have as many
        layers."""
        return sum(self.group_kept) // len(self.group_kept) if self.group_kept else kept

    def protected(self, last: int | None = None) -> torch.Tensor:
        """Positions that stay whatever their score: bool [N] on the CPU.

        Args:
            last: in place of the option protect_last.
        """
        return protected_positions(
            self.config, len(self.token_ids), special=self.special_positions,
            ranges=[(start, stop) for _, start, stop in self.turns], last=last,
        )


@dataclass(frozen=True)
class Progress:
    """What a step does of a prompt that vLLM prefills for a job.

    Attributes:
        shadow: vLLM's id of the request that prefills it.
        start, stop: half-open range of positions that the step computes.
        blocks: of what was read so far, of each KV-cache group; empty before the step of the
            prompt's last token, and between that and the last step, in which a hint ends.
    """

    job: int
    shadow: str
    start: int
    stop: int
    blocks: tuple[list[int], ...] = ()


@dataclass(frozen=True)
class BlockCopy:
    """Whole blocks of a finished job that go into a request's own blocks."""

    request_id: str
    sources: list[int]
    targets: list[int]


@dataclass
class StepMessage:
    """Scheduler side to worker side.

    Copies are made before the step's forward; so begin jobs of the native delivery, which look on.
    The others run after it, where releases come before new ones.

    Attributes:
        counts: tokens that vLLM computes of each request, where there is progress to look at.
    """

    jobs: list[JobSpec] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)
    releases: list[int] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class JobResult:
    """What a job found: kept source positions (ascending) and figures, or an error."""

    kept: list[int] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] | None = None
    error: str | None = None


@dataclass
class WorkerMessage:
    """Worker side to scheduler side.

    Attributes:
        results: by the job's id. held: how many jobs the worker holds.
        broken: requests whose blocks could not be written, where vLLM cannot be told by blocks.
    """

    results: dict[int, JobResult] = field(default_factory=dict)
    held: int = 0
    broken: list[str] = field(default_factory=list)

    def merged(self, other: WorkerMessage) -> WorkerMessage:
        """What two tensor-parallel ranks say together: any failure or difference is an error."""
        results = dict(self.results)
        for job, theirs in other.results.items():
            ours = results.get(job)
            if ours is None or theirs.error:
                results[job] = theirs
            elif not ours.error and ours.kept != theirs.kept:
                results[job] = JobResult(error="tensor-parallel ranks kept different tokens")
        broken = sorted({*self.broken, *other.broken})
        return WorkerMessage(results, max(self.held, other.held), broken)


@dataclass(frozen=True)
class WorkerStart:
    """What a worker says once.

    Attributes:
        job_bytes: that running jobs may hold.
        problem: why the model's layers cannot be run. native_problem: why the model cannot be
            served with the native delivery.
    """

    job_bytes: int
    problem: str | None
    native_problem: str | None = None
