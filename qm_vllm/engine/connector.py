"""The KV connector that vLLM loads: thin glue to the scheduler side and the worker side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)

from qm_vllm.api import CONFIG_KEY
from qm_vllm.calibration import calibrated
from qm_vllm.config import QuickMergeConfig
from qm_vllm.engine import compat
from qm_vllm.engine.facts import read_facts, refuse
from qm_vllm.engine.messages import QuickMergeMetadata, QuickMergeWorkerMetadata
from qm_vllm.engine.metrics import QuickMergePromMetrics, QuickMergeStats

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
        KVConnectorPromMetrics,
        KVConnectorStats,
    )
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


class QuickMergeConnector(KVConnectorBase_V1, SupportsHMA):
    """Compresses prompts before any block is allocated for them.

    Raises:
        ConfigError: the engine's options are invalid.
        RuntimeError: this vLLM or this engine setting cannot work; the message says why.
    """

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        options = self._kv_transfer_config.kv_connector_extra_config.get(CONFIG_KEY, {})
        problem = refuse(vllm_config)
        if problem:
            raise RuntimeError(f"qm_vllm cannot run in this engine: {problem}")
        text = vllm_config.model_config.hf_text_config
        self.config = calibrated(QuickMergeConfig.from_dict(options), text)
        if role == KVConnectorRole.SCHEDULER:
            from qm_vllm.engine.requests.scheduler_side import SchedulerSide

            compat.require()
            facts = read_facts(vllm_config, kv_cache_config, self.config.max_source_tokens)
            self.scheduler_side = SchedulerSide(self.config, facts)
        else:
            from qm_vllm.engine.jobs.worker_side import WorkerSide

            self.worker_side = WorkerSide(self.config, vllm_config.cache_config.block_size)

    @property
    def requires_kv_delivery(self) -> bool:
        """Nothing is handed off at the end of a request."""
        return False

    # --- scheduler -------------------------------------------------------------------------
    def on_new_request(self, request: Request) -> None:
        self.scheduler_side.on_new_request(request)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        return self.scheduler_side.matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        block_ids = list(blocks.get_block_ids()[0]) if num_external_tokens else []
        self.scheduler_side.after_allocation(request, block_ids, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return self.scheduler_side.build_metadata()

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        metadata = connector_output.kv_connector_worker_meta
        if isinstance(metadata, QuickMergeWorkerMetadata):
            self.scheduler_side.on_worker_output(metadata)

    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        return False, {CONFIG_KEY: self.scheduler_side.finished(request, len(block_ids))}

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, [b for group in block_ids for b in group])

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        side = getattr(self, "scheduler_side", None)
        return None if side is None else side.take_stats()

    @classmethod
    def build_kv_connector_stats(
        cls, data: dict[str, Any] | None = None
    ) -> KVConnectorStats | None:
        return QuickMergeStats(data or {})

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: VllmConfig, metric_types: Any, labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KVConnectorPromMetrics | None:
        return QuickMergePromMetrics(
            vllm_config, metric_types, labelnames, per_engine_labelvalues
        )

    def reset_cache(self) -> bool | None:
        self.scheduler_side.reset()
        return True

    # --- worker ----------------------------------------------------------------------------
    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self.worker_side.kv_caches = kv_caches

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        self.worker_side.load(self._metadata())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are complete when :meth:`start_load_kv` returns."""

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """Encoder work of this step: after the forward, so that running requests come first."""
        self.worker_side.work(self._metadata())

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self.worker_side.take_failed_blocks()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        return self.worker_side.collect()

    def _metadata(self) -> QuickMergeMetadata:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, QuickMergeMetadata)
        return metadata
