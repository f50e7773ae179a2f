"""Worker half of the connector: the job queue, a step's work budget, and KV delivery."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from qm_vllm.config import QuickMergeConfig
from qm_vllm.engine.adapters import UnsupportedDecoder, view_decoder
from qm_vllm.engine.dense.runner import DenseRunner, self_check
from qm_vllm.engine.jobs.compression_job import CompressionJob, share_pass
from qm_vllm.engine.kv_inject import slot_mapping, write_kv
from qm_vllm.engine.messages import (
    JobResult,
    JobSpec,
    QuickMergeMetadata,
    QuickMergeWorkerMetadata,
)
from qm_vllm.engine.requests.planning import embedding_config
from qm_vllm_patches.decoder import DecoderView
from qm_vllm_patches.log import get_logger

logger = get_logger(__name__)


class WorkerSide:
    """Owns the jobs of one worker. All ranks of a tensor-parallel group do the same units."""

    def __init__(self, config: QuickMergeConfig, block_size: int) -> None:
        self.config, self.block_size = config, block_size
        self.runner: DenseRunner | None = None
        self.problem: str | None = "the worker was not given the model (set worker_cls)"
        self.kv_caches: dict[str, torch.Tensor] = {}
        self.jobs: dict[str, CompressionJob] = {}
        self.results: dict[str, JobResult] = {}
        self.failed_blocks: set[int] = set()
        self._reported = 0

    def attach_model(self, model: Any, dtype: torch.dtype, device: torch.device) -> None:
        """Look into the loaded model; a model that does not fit is reported per request."""
        chunk = self.config.encoder_chunk_tokens
        try:
            self.runner = DenseRunner(view_decoder(model), dtype, device, chunk)
            self.problem = self_check(self.runner)
            if self.problem is None and not self.runner.can_place():
                logger.warning(
                    "qm_vllm: this model's rotary embedding has no table of angles that can be "
                    "replaced; kept tokens get compact positions"
                )
        except UnsupportedDecoder as error:
            self.runner, self.problem = None, str(error)
            if hasattr(model, "embed_input_ids"):
                view = DecoderView(model.embed_input_ids, [])
                self.runner = DenseRunner(view, dtype, device, chunk)
        if self.problem:
            logger.warning("qm_vllm: %s", self.problem)

    def load(self, metadata: QuickMergeMetadata) -> None:
        """Write the KV of the requests that were scheduled in this step."""
        for load in metadata.loads:
            try:
                job = self.jobs[load.key]
                assert self.runner is not None
                slots = slot_mapping(
                    load.block_ids, self.block_size, load.start, load.stop, self.runner.device
                )
                layers = [
                    (layer.attn, self.kv_caches[layer.attn.layer_name])
                    for layer in self.runner.view.layers
                ]
                write_kv(layers, job.artifact, slots, load.start)
            except Exception:
                logger.exception("qm_vllm: writing the KV of %s failed", load.request_id)
                first, last = load.start // self.block_size, -(-load.stop // self.block_size)
                self.failed_blocks.update(load.block_ids[first:last])

    def work(self, metadata: QuickMergeMetadata) -> None:
        """Apply releases, take new jobs, and do at most one step's worth of encoder work."""
        for key in metadata.releases:
            self.jobs.pop(key, None)
        for wanted in metadata.jobs:
            spec = self._without_layers(wanted) if self.problem else wanted
            if self.runner is None or spec is None:
                self.results[wanted.key] = JobResult(wanted.key, error=self.problem)
            else:
                job = CompressionJob(spec, self.runner)
                job.start_level(self._unfinished())
                self.jobs[spec.key] = job
        if self.runner is None:
            return
        if self.config.encoder_batch and metadata.jobs:
            share_pass(self._unfinished(), self.config.encoder_chunk_tokens)
        budget = self.config.encoder_chunk_tokens * max(1, len(self.runner.view.layers))
        while budget > 0 and (unfinished := self._unfinished()):
            # The one that had least: a short prompt does not wait for a long one's end.
            job = min(unfinished, key=lambda job: job.spent)
            budget -= job.advance()
            if job.result is not None:
                self.results[job.spec.key] = job.result

    def _unfinished(self) -> list[CompressionJob]:
        return [job for job in self.jobs.values() if job.result is None]

    def _without_layers(self, spec: JobSpec) -> JobSpec | None:
        """The same job on token embeddings alone, where the layers cannot be run densely."""
        if spec.encoder_layers == 0:
            return spec
        config = embedding_config(spec.config)
        if config is None or config.delivery != "prefill":
            return None
        return replace(spec, encoder_layers=0, config=config)

    def collect(self) -> QuickMergeWorkerMetadata | None:
        """Results since the last call and the number of jobs held, or None if nothing changed."""
        if not self.results and len(self.jobs) == self._reported:
            return None
        results, self.results, self._reported = self.results, {}, len(self.jobs)
        return QuickMergeWorkerMetadata(results, self._reported)

    def take_failed_blocks(self) -> set[int]:
        """Blocks whose KV could not be written since the last call."""
        failed, self.failed_blocks = self.failed_blocks, set()
        return failed
