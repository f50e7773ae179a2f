"""A worker's part of the native delivery: it looks on while vLLM prefills, and then compacts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from qm_vllm.engine.agreement import OtherRankFailed, together
from qm_vllm.engine.messages import JobResult, JobSpec, Progress, StepMessage
from qm_vllm.engine.native.layers import (
    CannotDeliver,
    NativeLayer,
    learn,
    native_layers,
    with_habits,
)
from qm_vllm.engine.native.native_job import NativeJob
from qm_vllm_patches.attention_layers import StepRows, watch
from qm_vllm_patches.kv_cache import PagedCache
from qm_vllm_patches.log import get_logger
from qm_vllm_patches.positions import Positions
from qm_vllm_patches.settings import CacheFacts

logger = get_logger(__name__)


class NativeWorker:
    """Jobs whose prompts vLLM prefills.

    Attributes:
        problem: why this model cannot be served so; None if it can.
    """

    def __init__(self, facts: CacheFacts) -> None:
        self.facts = facts
        self.problem: str | None = "the worker was not given the model (set worker_cls)"
        self.layers: list[NativeLayer] = []
        self.jobs: dict[int, NativeJob] = {}
        self.cache: PagedCache | None = None
        self.device = torch.device("cpu")
        self._rows: StepRows | None = None
        self._positions: Positions | None = None
        self._now: list[Progress] = []
        self._due: list[Progress] = []
        self._first: dict[str, int] | None = None
        self._counts: dict[str, int] = {}

    def attach(
        self, model: Any, runner: Any, cache: PagedCache, device: torch.device, longest: int
    ) -> None:
        """Look into the loaded model and begin to look on; whatever it is, the engine serves it.

        Args:
            longest: tokens of the longest request.
        """
        self.cache, self.device = cache, device

        def look() -> None:
            layers = native_layers(model, runner, self.facts.layers, device, longest)
            learn(cache, layers)
            self.layers = with_habits(model, runner, layers, device, longest)

        try:
            together(look)  # a job needs all ranks
            self._rows, self._positions = StepRows(runner), Positions(runner)
            watch([one.layer for one in self.layers if one.window is None], self._see)
            self.problem = None
        except (CannotDeliver, OtherRankFailed) as error:
            self.problem = str(error)
        except Exception as error:  # models come in all shapes
            logger.exception("qm_vllm: looking into the model failed")
            self.problem = f"looking into the model failed: {type(error).__name__}: {error}"

    def begin(self, message: StepMessage) -> None:
        """A step begins."""
        self._now = [one for one in message.progress if one.job in self.jobs]
        self._first, self._counts = None, message.counts

    def _see(self, name: str, queries: torch.Tensor) -> None:
        """Inside the model's forward, where nothing may be raised."""
        if not self._now:
            return
        try:
            assert self._rows is not None
            if self._first is None:
                self._first = self._rows.first(self._counts)
            for one in self._now:
                row = self._first[one.shadow]
                self.jobs[one.job].see(name, queries[row : row + one.stop - one.start], one.start)
        except Exception as error:
            logger.exception("qm_vllm: looking at a step's queries failed")
            for one in self._now:
                self.jobs[one.job].problem = f"{type(error).__name__}: {error}"

    def take(self, spec: JobSpec) -> JobResult | None:
        """Begin a job. Returns its result if it cannot be done."""
        if self.problem:
            return JobResult(error=self.problem)
        assert self.cache is not None
        self.jobs[spec.id] = NativeJob(
            spec, self.layers, self.cache, self.facts.windows, self.device
        )
        return None

    def finish(self) -> None:
        """After the step's forward: the prompts and hints that it completed are due."""
        due, self._now = [one for one in self._now if one.blocks], []
        self._due += due
        for one in due:
            job = self.jobs[one.job]
            try:
                assert self._positions is not None
                job.last = self._positions.last(one.shadow, len(job.spec.token_ids))
            except Exception as error:
                logger.exception("qm_vllm: looking for a prompt's last position failed")
                job.problem = f"{type(error).__name__}: {error}"

    def compact(self) -> dict[int, JobResult]:
        """Before the next step's forward: results of the prompts that are due, by job.

        Not in the step that completes them: its tokens need not wait. Their blocks may belong to
        others by now, but nobody has written into these yet.
        """
        due, self._due = self._due, []
        results = {}
        for one in (each for each in due if each.job in self.jobs):
            spec = self.jobs[one.job].spec
            if one.stop >= spec.rows:
                results[one.job] = self.jobs.pop(one.job).run(one.blocks)
            elif one.start < len(spec.token_ids):
                self.jobs[one.job].pass_prompt(one.blocks)
        return results

    def release(self, jobs: Sequence[int]) -> None:
        """Forget jobs that nobody waits for."""
        for job in jobs:
            self.jobs.pop(job, None)
