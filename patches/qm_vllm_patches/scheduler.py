"""vLLM's scheduler with shadows: requests of our own that prefill the prompt of one held back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.request import Request, RequestStatus

from qm_vllm_patches import company, first_token
from qm_vllm_patches.block_pool import looking_up, skipped_blocks
from qm_vllm_patches.connector import ConnectorBase
from qm_vllm_patches.true_figures import Teller, TrueFigures

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
    from vllm.v1.core.sched.output import KVConnectorBlockState, SchedulerOutput
    from vllm.v1.metrics.stats import SchedulerStats

    from qm_vllm_patches.requests import RequestHandle


@dataclass(frozen=True)
class ShadowStep:
    """What one step of the engine does of a shadow's prompt.

    Attributes:
        start, stop: half-open range of positions that this step computes.
        blocks: ids of the shadow's blocks so far, of each KV-cache group.
    """

    shadow: str
    start: int
    stop: int
    blocks: tuple[list[int], ...]


class Shadows:
    """The live shadows of one engine, by their ids.

    A shadow is an ordinary request for one token with the ids, media, salt, adapter, priority and
    time of arrival of the request that it stands for. vLLM prefills it as any other.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.live: dict[str, Request] = {}
        self.limits: dict[str, int] = {}
        self.ended: set[str] = set()
        self.given: list[tuple[Request, int, str | None]] = []
        self.broken: list[tuple[Request, dict[str, Any]]] = []
        self.teller: Teller | None = None

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.live

    def start(
        self, handle: RequestHandle, shadow: str, token_ids: Sequence[int], salt: str | None,
        last: int, first: bool,
    ) -> None:
        """Queue a shadow; called before a step is scheduled.

        Args:
            handle: of the request that it stands for.
            last: tokens at the prompt's end that it must compute itself, whatever the prefix
                cache knows.
            first: the token that it samples is the first of that request's answer.
        """
        model: Any = handle.request
        params = first_token.sampling(model.sampling_params if first else None)
        request = Request(
            shadow, list(token_ids), params, None,
            client_index=model.client_index, arrival_time=model.arrival_time,
            lora_request=model.lora_request, cache_salt=salt, priority=model.priority,
            block_hasher=model._block_hasher, mm_features=handle.media,
        )
        self.live[shadow], self.limits[shadow] = request, max(0, len(token_ids) - last)
        self.scheduler.add_request(request)

    def stop(self, shadow: str) -> None:
        """End a shadow before its time; called before a step is scheduled."""
        if shadow in self.live:
            self.scheduler.finish_requests(shadow, RequestStatus.FINISHED_ABORTED)
            self.forget(shadow)

    def give_up(self, request_id: str) -> None:
        """End a user's request with an error; called before a step is scheduled.

        vLLM does so itself where blocks were not loaded, but not with several KV-cache groups.
        """
        report = {} if self.teller is None else self.teller.report_so_far(request_id, 0)
        ended = self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ERROR)
        self.broken += [(request, report) for request in ended]

    def begin(self, handle: RequestHandle, token: int, shadow: str | None = None) -> None:
        """A request's first token is known: it goes on behind it, and its client is told.

        Args:
            shadow: that was started for this request and sampled the token.
        """
        handle.begin_with(token)
        self.given.append((handle.request, token, shadow))

    def forget(self, shadow: str) -> None:
        """It has ended. Its last output is still to be hidden."""
        self.ended.add(shadow)
        self.live.pop(shadow, None)
        self.limits.pop(shadow, None)

    def steps(self, output: SchedulerOutput) -> list[ShadowStep]:
        """What the step that was just scheduled does of each shadow."""
        scheduled = output.num_scheduled_tokens
        state: KVConnectorBlockState | None = output.kv_connector_block_state
        found = []
        for shadow, request in self.live.items():
            count = scheduled.get(shadow, 0)
            if count:
                assert state is not None
                start = request.num_computed_tokens
                found.append(
                    ShadowStep(shadow, start, start + count, state.resolve_block_ids(shadow))
                )
        return found

    def loading(self) -> bool:
        """Whether KV of a request is on its way from another connector."""
        there = self.scheduler.finished_recving_kv_req_ids
        return company.loading(self.scheduler.requests.values(), there)

    def seats(self) -> tuple[int, int]:
        """Shadows among the running and among the waiting requests."""
        running = sum(one.status == RequestStatus.RUNNING for one in self.live.values())
        return running, len(self.live) - running


class ShadowScheduler:
    """Goes before a scheduler class of vLLM: adds shadows and keeps them from clients' eyes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shadows = Shadows(self)
        ours, others = company.split(self.connector, ConnectorBase)  # type: ignore[attr-defined]
        self._half: Any = None
        self._figures: TrueFigures | None = None
        if ours is not None:
            self._half = ours.bind_shadows(self.shadows)
            self.shadows.teller = self._half.telling
            self._figures = TrueFigures(self, self._half.telling, ours.REPORT)
        self._alone = not others
        if ours is not None and others:
            ours.bind_company(company.Company(
                self.connector, others, self.shadows.limits,  # type: ignore[attr-defined]
            ))

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """The connector may add and end shadows before each step."""
        if self._half is not None:
            self._half.before_step()
        return super().schedule(*args, **kwargs)  # type: ignore[misc]

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """Without the outputs of shadows, whose tokens go to the requests that they stand for."""
        found = super().update_from_output(*args, **kwargs)  # type: ignore[misc]
        shadows = self.shadows
        hidden: dict[str, EngineCoreOutput] = {}
        if shadows.ended:
            for each in found.values():
                shown = []
                for one in each.outputs:
                    if one.request_id in shadows.ended:
                        hidden[one.request_id] = one
                    else:
                        shown.append(one)
                each.outputs = shown
        for shadow, output in hidden.items():
            if tokens := output.new_token_ids:  # none where vLLM ended it with an error
                self._half.first_token(shadow, tokens[0])
        shadows.ended = set()
        self._tell(found, hidden)
        if self._figures is not None:
            for each in found.values():
                for one in each.outputs:
                    if one.prefill_stats is not None:
                        self._figures.first_output(one)
        return found

    def _tell(
        self, found: dict[int, EngineCoreOutputs], hidden: dict[str, EngineCoreOutput]
    ) -> None:
        """Add what clients hear of requests that no step ran to what they hear of the step."""
        shadows = self.shadows
        for request, token, shadow in shadows.given:
            output = EngineCoreOutput(request.request_id, [token])
            if shadow is not None:  # when its prompt was begun, and what of it was cached
                output.events = hidden[shadow].events
                output.prefill_stats = hidden[shadow].prefill_stats
            else:
                output.prefill_stats = PrefillStats()
            # Before the step's own output, which is the next token.
            found.setdefault(request.client_index, EngineCoreOutputs()).outputs.insert(0, output)
        for request, report in shadows.broken:
            output = EngineCoreOutput(
                request.request_id, [], finish_reason=request.get_finished_reason()
            )
            if report and self._figures is not None:
                output.kv_transfer_params = {self._figures.key: report}
            found.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(output)
        shadows.given, shadows.broken = [], []

    def get_request_counts(self) -> tuple[int, int]:
        """Running and waiting requests of users."""
        running, waiting = super().get_request_counts()  # type: ignore[misc]
        ours = self.shadows.seats()
        return max(0, running - ours[0]), max(0, waiting - ours[1])

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        """Without hits of an external cache, if there is none: what we bring was computed here."""
        stats: SchedulerStats | None = super().make_stats(*args, **kwargs)  # type: ignore[misc]
        if stats is not None and self._figures is not None and self._alone:
            stats.connector_prefix_cache_stats = None
        return stats

    def _get_local_prefix_cache_hit(
        self, request: Request, *most: int | None
    ) -> tuple[KVCacheBlocks, int, int, bool]:
        """A shadow computes its last tokens itself, because their queries are needed.

        Args:
            most: newer vLLMs say how long a hit may be; None is no bound.
        """
        limit = self.shadows.limits.get(request.request_id)
        manager: KVCacheManager = self.kv_cache_manager  # type: ignore[attr-defined]
        hole = skipped_blocks(manager.block_pool).get(request.request_id, 0)
        if limit is None or not manager.prefix_cache_lookup_enabled(request):
            with looking_up(hole):
                found: tuple[KVCacheBlocks, int, int, bool] = (
                    super()._get_local_prefix_cache_hit(request, *most)  # type: ignore[misc]
                )
            return found
        # A shorter hit of a sliding-window group is other blocks, so none can be cut off.
        coordinator: KVCacheCoordinator = manager.coordinator
        bounds = [bound for bound in most if bound is not None]
        blocks, hit, more = coordinator.find_longest_cache_hit(
            request.block_hashes, min(limit, request.num_tokens - 1, *bounds)
        )
        # As vLLM does it: where a group that keeps few blocks shall keep some for the next prompt.
        boundary = hit + more if more else 0
        return manager.create_kv_cache_blocks(blocks), hit, boundary, False


class SyncShadowScheduler(ShadowScheduler, Scheduler):  # type: ignore[misc]
    """For engines that wait for each step's tokens."""


class AsyncShadowScheduler(ShadowScheduler, AsyncScheduler):  # type: ignore[misc]
    """For engines that schedule ahead."""


def make_scheduler(*args: Any, **kwargs: Any) -> Any:
    """The scheduler of an engine: what vLLM would make, with shadows (``scheduler_cls``)."""
    config = kwargs["vllm_config"]
    if config.kv_transfer_config.kv_connector == "MultiConnector":
        # As our connector alone says of itself (connector.py): no block goes while a step writes.
        config.kv_transfer_config.kv_role = "kv_both"
    ahead = config.scheduler_config.async_scheduling
    return (AsyncShadowScheduler if ahead else SyncShadowScheduler)(*args, **kwargs)
