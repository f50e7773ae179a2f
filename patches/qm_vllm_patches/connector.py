"""The KV connector that vLLM loads, turned into calls with plain values on two sides."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)

from qm_vllm_patches.block_pool import BlockStore
from qm_vllm_patches.messages import StartEnvelope, StepEnvelope, WorkerEnvelope
from qm_vllm_patches.metrics import PromMetricsBase, StatsBase
from qm_vllm_patches.requests import Arrival, arrival
from qm_vllm_patches.settings import (
    CacheFacts,
    EngineSettings,
    has_processors,
    read_cache,
    read_settings,
)

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
        KVConnectorPromMetrics,
        KVConnectorStats,
    )
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

    from qm_vllm_patches.company import Company
    from qm_vllm_patches.scheduler import Shadows, ShadowStep
    from qm_vllm_patches.true_figures import Teller


class SchedulerHalf(Protocol):
    """What the scheduler's process asks; the messages are plain and belong to the two halves."""

    @property
    def telling(self) -> Teller: ...
    def bind_blocks(self, store: BlockStore) -> None: ...
    def bind_shadows(self, shadows: Shadows) -> None: ...
    def before_step(self) -> None: ...
    def shadow_ended(self, shadow: str) -> None: ...
    def first_token(self, shadow: str, token: int) -> None: ...
    def workers_started(self, messages: Sequence[Any]) -> None: ...
    def arrived(self, request: Arrival) -> None: ...
    def matched_tokens(self, request_id: str, computed: int) -> int | None: ...
    def allocated(
        self, request_id: str, blocks: Sequence[list[int]], external: int
    ) -> None: ...
    def step_message(
        self, scheduled_tokens: int, shadows: Sequence[ShadowStep], counts: dict[str, int]
    ) -> Any: ...
    def worker_message(self, message: Any) -> None: ...
    def finished(self, request_id: str, num_blocks: int) -> dict[str, Any]: ...
    def take_counts(self) -> dict[str, Any] | None: ...
    def reset(self) -> None: ...


class WorkerHalf(Protocol):
    """What a worker asks."""

    kv_caches: dict[str, torch.Tensor]

    def begin(self, message: Any) -> None: ...
    def load(self, message: Any) -> None: ...
    def work(self, message: Any) -> None: ...
    def collect(self) -> Any | None: ...
    def take_failed_blocks(self) -> set[int]: ...
    def start_message(self) -> Any: ...


class ConnectorBase(KVConnectorBase_V1, SupportsHMA):
    """Holds one of the halves, by role. A subclass makes them and names its metrics."""

    REPORT: str
    """Key of the report in a request's ``kv_transfer_params``."""
    STATS: type[StatsBase]
    PROM_METRICS: type[PromMetricsBase]
    shadows: Shadows | None = None
    company: Company | None = None

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.store: BlockStore | None = None
        self._own_sampling = has_processors(vllm_config)
        self._by_priority = vllm_config.scheduler_config.policy == "priority"
        settings, cache = read_settings(vllm_config), read_cache(kv_cache_config)
        if role == KVConnectorRole.SCHEDULER:
            # What a consumer is for the scheduler, which then lets no block go while a step may
            # still write into it. Not for the frontend: that of a consumer takes images as states,
            # which any client could send, and bad ones end the engine.
            vllm_config.kv_transfer_config.kv_role = "kv_consumer"
            self.scheduler_side = self.make_scheduler_side(settings, cache)
        else:
            self.worker_side = self.make_worker_side(settings, cache)

    @abstractmethod
    def make_scheduler_side(
        self, settings: EngineSettings, cache: CacheFacts
    ) -> SchedulerHalf:
        """The half in the scheduler's process."""

    @abstractmethod
    def make_worker_side(self, settings: EngineSettings, cache: CacheFacts) -> WorkerHalf:
        """The half in a worker."""

    @property
    def requires_kv_delivery(self) -> bool:
        """Nothing is handed off at the end of a request."""
        return False

    # --- scheduler -------------------------------------------------------------------------
    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        block_size = self._vllm_config.cache_config.block_size
        self.store = BlockStore(gpu_block_pool, block_size)
        self.scheduler_side.bind_blocks(self.store)

    def set_xfer_handshake_metadata(
        self, metadata: dict[int, KVConnectorHandshakeMetadata]
    ) -> None:
        told = [one.message for one in metadata.values() if isinstance(one, StartEnvelope)]
        self.scheduler_side.workers_started(told)

    def bind_shadows(self, shadows: Shadows) -> SchedulerHalf:
        """The engine's scheduler can prefill prompts for us. Called by :mod:`.scheduler`."""
        self.shadows = shadows
        self.scheduler_side.bind_shadows(shadows)
        return self.scheduler_side

    def bind_company(self, company: Company) -> None:
        """Other connectors are beside this one. Called by :mod:`.scheduler`."""
        self.company = company
        assert self.store is not None
        self.store.on_take = company.take

    def _is_shadow(self, request: Request) -> bool:
        return self.shadows is not None and request.request_id in self.shadows

    def on_new_request(self, request: Request) -> None:
        if not self._is_shadow(request):
            one = arrival(
                request, own_sampling=self._own_sampling, by_priority=self._by_priority
            )
            one.handle.company, one.handle.store = self.company, self.store
            self.scheduler_side.arrived(one)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        if self._is_shadow(request):
            return 0, False
        return self.scheduler_side.matched_tokens(request.request_id, num_computed_tokens), False

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        if self._is_shadow(request):
            return
        block_ids = blocks.get_block_ids() if num_external_tokens else ()
        self.scheduler_side.allocated(request.request_id, block_ids, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        tokens = scheduler_output.total_num_scheduled_tokens
        if not tokens and self.shadows is not None and self.company is not None:
            tokens = int(self.shadows.loading())  # a load is no standstill
        steps = [] if self.shadows is None else self.shadows.steps(scheduler_output)
        counts = dict(scheduler_output.num_scheduled_tokens) if steps else {}
        return StepEnvelope(self.scheduler_side.step_message(tokens, steps, counts))

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        told = connector_output.kv_connector_worker_meta
        if isinstance(told, WorkerEnvelope):
            self.scheduler_side.worker_message(told.message)

    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        if self.shadows is not None and self._is_shadow(request):
            self.shadows.forget(request.request_id)
            self.scheduler_side.shadow_ended(request.request_id)
            return False, None
        if self.store is not None:
            self.store.leave_out(request.request_id, 0)
        report = self.scheduler_side.finished(request.request_id, len(block_ids))
        return False, {self.REPORT: report}

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        # Block 0 stands for those that left the window of a sliding-window group.
        return self.request_finished(request, [b for group in block_ids for b in group if b])

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        side = getattr(self, "scheduler_side", None)
        counts = None if side is None else side.take_counts()
        return None if counts is None else self.STATS(counts)

    @classmethod
    def build_kv_connector_stats(
        cls, data: dict[str, Any] | None = None
    ) -> KVConnectorStats | None:
        return cls.STATS(data or {})

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: VllmConfig, metric_types: Any, labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KVConnectorPromMetrics | None:
        return cls.PROM_METRICS(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def reset_cache(self) -> bool | None:
        self.scheduler_side.reset()
        return True

    # --- worker ----------------------------------------------------------------------------
    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self.worker_side.kv_caches = kv_caches

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        return StartEnvelope(self.worker_side.start_message())

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """The first call of each step; loads may be started only after the forward."""
        super().bind_connector_metadata(connector_metadata)
        self.worker_side.begin(self._message())

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        self.worker_side.load(self._message())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are complete when :meth:`start_load_kv` returns."""

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """Nothing is saved. No place to work: not every vLLM calls it in every step."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[None, None]:
        """Work of this step: after the forward, so that running requests come first."""
        self.worker_side.work(self._message())
        return None, None

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self.worker_side.take_failed_blocks()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        told = self.worker_side.collect()
        return None if told is None else WorkerEnvelope(told)

    def _message(self) -> Any:
        envelope = self._get_connector_metadata()
        assert isinstance(envelope, StepEnvelope)
        return envelope.message


def registered(name: str, module: str) -> None:
    """Let vLLM find a connector by its name, too, as it does for the figures of several."""
    if name not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(name, module, name)
