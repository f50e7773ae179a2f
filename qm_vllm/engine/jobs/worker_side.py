"""Worker half of the connector: the job queue, a step's work budget, and copies of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from qm_vllm.config import QuickMergeConfig
from qm_vllm.engine.adapters import UnsupportedDecoder, embedding_view, view_decoder
from qm_vllm.engine.agreement import OtherRankFailed, together
from qm_vllm.engine.dense.comparison import difference
from qm_vllm.engine.dense.runner import DenseRunner
from qm_vllm.engine.jobs.compression_job import CompressionJob, share_pass
from qm_vllm.engine.jobs.job_cache import JobCache
from qm_vllm.engine.jobs.parted_job import PartedJob
from qm_vllm.engine.messages import JobResult, JobSpec, StepMessage, WorkerMessage, WorkerStart
from qm_vllm.engine.native.native_worker import NativeWorker
from qm_vllm.engine.parts import longest_part, places_needed
from qm_vllm.engine.untouched import Untouched, without_layers
from qm_vllm_patches.attention_layers import cached_layers
from qm_vllm_patches.kv_cache import PagedCache
from qm_vllm_patches.log import get_logger
from qm_vllm_patches.own_forward import OwnRows, forward_context
from qm_vllm_patches.settings import CacheFacts

logger = get_logger(__name__)


class WorkerSide:
    """Owns the jobs of one worker. All ranks of a tensor-parallel group do the same units.

    Attributes:
        problem: why the model's layers cannot be run; None if they can.
        cache_problem: why no KV can be put into the cache; None if it can.
        job_bytes: that running jobs may hold together.
        quantised: the KV cache stores other numbers than the model computes with.
        native: jobs whose prompts vLLM prefills.
    """

    def __init__(
        self, config: QuickMergeConfig, block_size: int, *, quantised: bool = False,
        facts: CacheFacts | None = None,
    ) -> None:
        self.config, self.block_size, self.quantised = config, block_size, quantised
        self.native = NativeWorker(facts or CacheFacts(1, 0))
        self.runner: DenseRunner | None = None
        self.problem: str | None = "the worker was not given the model (set worker_cls)"
        self.cache_problem: str | None = None
        self.job_bytes = 0
        self.kv_caches: dict[str, torch.Tensor] = {}
        self.cache: PagedCache | None = None
        self.jobs: dict[int, CompressionJob] = {}
        self.results: dict[int, JobResult] = {}
        self.failed_blocks: set[int] = set()
        self.broken: list[str] = []
        self._reported = 0
        self._told: set[str | None] = {None}

    # --- start -----------------------------------------------------------------------------
    def attach_model(self, model: Any, dtype: torch.dtype, device: torch.device) -> None:
        """Look into the loaded model; one that does not fit is reported, whatever it is."""
        self.cache = PagedCache(self.kv_caches, self.block_size)
        chunk = self.config.encoder_chunk_tokens
        try:
            self.runner = DenseRunner(view_decoder(model), dtype, device, chunk)
            self.problem = None
            self.cache_problem = self._learn_cache(self.runner)
        except UnsupportedDecoder as error:
            self.problem = str(error)
        except Exception as error:  # models come in all shapes; the engine serves them anyway
            logger.exception("qm_vllm: looking into the model failed")
            self.problem = f"looking into the model failed: {type(error).__name__}: {error}"
        self._conclude(model, dtype, device)

    def attach_runner(
        self, model: Any, runner: Any, device: torch.device, longest: int
    ) -> None:
        """Compare the dense pass with the model's own, and look on while vLLM runs it, for the
        native delivery.

        Args:
            runner: what vLLM runs the model with. longest: tokens of the longest request.
        """
        assert self.cache is not None
        if self.runner is not None:
            dense, kind = self.runner, (self.runner.dtype, device)
            if self.problem is None and dense.view.in_context:
                dense.around = partial(forward_context, runner)
            self.problem = self._unlike(model, runner, device)
            self._conclude(model, *kind)
        self.native.attach(model, runner, self.cache, device, longest)

    def _unlike(self, model: Any, runner: Any, device: torch.device) -> str | None:
        """Why the layers must not be run densely, on all ranks alike; None if they may."""
        def compare() -> None:
            if self.problem is not None:
                raise UnsupportedDecoder(self.problem)
            assert self.runner is not None
            blocks = min(len(tensor) for tensor in self.kv_caches.values())
            modules = [one.module for one in cached_layers(model, self.native.facts.layers)]
            own = OwnRows(model, runner, modules, device, blocks)
            own.run()
            problem = difference(self.runner, own)
            if problem is not None:
                raise UnsupportedDecoder(problem)

        try:
            together(compare)
        except (UnsupportedDecoder, OtherRankFailed) as error:
            return str(error)
        except Exception as error:
            logger.exception("qm_vllm: comparing the dense pass with the model's own failed")
            return f"the dense pass fails on this model: {type(error).__name__}: {error}"
        return None

    def _conclude(self, model: Any, dtype: torch.dtype, device: torch.device) -> None:
        """Say what is wrong, once. Of layers that cannot be run only the embeddings are left."""
        # Where vLLM prefills the prompts it is no loss.
        tell = logger.warning if self.config.delivery == "inject" else logger.info
        for problem in (self.problem, self.cache_problem):
            if problem not in self._told:
                tell("qm_vllm: %s", problem)
                self._told.add(problem)
        if self.problem is None:
            return
        view = embedding_view(model)
        self.runner = None if view is None else DenseRunner(
            view, dtype, device, self.config.encoder_chunk_tokens
        )

    def _learn_cache(self, runner: DenseRunner) -> str | None:
        assert self.cache is not None
        if self.quantised:  # nothing is read back, and numbers are rounded
            return None
        try:
            return self.cache.learn([layer.module for layer in runner.view.layers])
        except Exception as error:
            logger.exception("qm_vllm: learning the KV cache's layout failed")
            return f"the KV cache cannot be read back: {type(error).__name__}: {error}"

    def start_message(self) -> WorkerStart:
        """What the scheduler side has to know, once."""
        return WorkerStart(
            self.job_bytes, self.problem or self.cache_problem, self.native.problem
        )

    # --- steps -----------------------------------------------------------------------------
    def begin(self, message: StepMessage) -> None:
        """The first call of a step: prompts of the native delivery are looked at from here on."""
        self.native.release(message.releases)
        self.results.update(self.native.compact())
        for spec in message.jobs:
            failed = self.native.take(spec) if spec.native else None
            if failed is not None:
                self.results[spec.id] = failed
        self.native.begin(message)

    def load(self, message: StepMessage) -> None:
        """Copy finished results into the blocks of requests that were scheduled in this step."""
        for copy in message.copies:
            try:
                assert self.cache is not None
                self.cache.copy(copy.sources, copy.targets)
            except Exception:
                logger.exception("qm_vllm: copying the KV of %s failed", copy.request_id)
                if self.native.facts.groups > 1:
                    self.broken.append(copy.request_id)
                else:
                    self.failed_blocks.update(copy.targets)

    def work(self, message: StepMessage) -> None:
        """Apply releases, take new jobs, and do at most one step's worth of encoder work."""
        for job_id in message.releases:
            self.jobs.pop(job_id, None)
        self.native.finish()
        for spec in message.jobs:
            if not spec.native:
                self._take(spec)
        if self.runner is None:
            return
        if self.config.encoder_batch and message.jobs:
            share_pass(self._unfinished(), self.config.encoder_chunk_tokens)
        budget = self.config.encoder_chunk_tokens * max(1, len(self.runner.view.layers))
        while budget > 0 and (unfinished := self._unfinished()):
            # The one that had least: a short prompt does not wait for a long one's end.
            job = min(unfinished, key=lambda job: job.spent)
            budget -= job.advance()
            if job.result is not None:
                self.results[job.spec.id] = job.result

    def _take(self, spec: JobSpec) -> None:
        try:
            wanted = self._without_layers(spec) if self.problem else spec
            if self.runner is None:
                raise Untouched("no_model", self.problem or "there is no model")
            job = self._job(wanted, self.runner)
        except Untouched as why:
            self.results[spec.id] = JobResult(error=str(why))
            return
        except Exception as error:
            logger.exception("qm_vllm: a compression job could not begin")
            self.results[spec.id] = JobResult(error=f"{type(error).__name__}: {error}")
            return
        job.start_level(self._unfinished())
        self.jobs[spec.id] = job

    def _job(self, spec: JobSpec, runner: DenseRunner) -> CompressionJob:
        """Raises Untouched: the model cannot be run over so many tokens, or the cache not read."""
        rows, most = longest_part(spec) if spec.parts else spec.rows, runner.reach
        places = places_needed(spec) if spec.parts else rows
        if most is not None and places > most:  # behind a table's end a GPU would stop for good
            raise Untouched(
                "too_long", f"the rotary embedding knows {most} positions, {places} are needed"
            )
        if spec.config.delivery != "inject":
            return CompressionJob(spec, runner)
        if self.cache_problem:
            raise Untouched("no_cache", self.cache_problem)
        if not spec.parts:
            return CompressionJob(spec, runner, self._cache_of(spec.blocks, spec.rows))
        own = len(spec.blocks) - -(-rows // self.block_size)
        return PartedJob(
            spec, runner, self._cache_of(spec.blocks[:own], own * self.block_size),
            self._cache_of(spec.blocks[own:], rows),
        )

    def _cache_of(self, blocks: Sequence[int], rows: int) -> JobCache:
        assert self.runner is not None
        assert self.cache is not None
        return JobCache(
            self.cache, blocks, self.runner.view.layers, rows, self.runner.device,
            aside=self.quantised,
        )

    def _unfinished(self) -> list[CompressionJob]:
        return [job for job in self.jobs.values() if job.result is None]

    def _without_layers(self, spec: JobSpec) -> JobSpec:
        """The same job on token embeddings alone, where the layers cannot be run densely.

        Raises:
            Untouched: it needs more than these.
        """
        if spec.encoder_layers == 0:
            return spec
        if spec.config.delivery != "prefill":
            raise Untouched("no_layers", self.problem or "the layers cannot be run")
        try:
            config = without_layers(spec.config)
        except Untouched:
            raise Untouched("no_layers", self.problem or "the layers cannot be run") from None
        return replace(spec, encoder_layers=0, config=config)

    def collect(self) -> WorkerMessage | None:
        """Results since the last call and the number of jobs held, or None if nothing changed."""
        held = len(self.jobs) + len(self.native.jobs)
        if not self.results and not self.broken and held == self._reported:
            return None
        results, self.results, self._reported = self.results, {}, held
        broken, self.broken = self.broken, []
        return WorkerMessage(results, self._reported, broken)

    def take_failed_blocks(self) -> set[int]:
        """Blocks whose KV could not be written since the last call."""
        failed, self.failed_blocks = self.failed_blocks, set()
        return failed
