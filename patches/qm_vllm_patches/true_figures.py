"""What clients and vLLM's metrics hear of a compressed request: figures of the prompt it came with.

For vLLM a compressed request has K tokens, of which K - 1 are cached. Its client sent N.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.request import Request


class Teller(Protocol):
    """What the connector's scheduler half knows of its requests."""

    def cached_of(self, request_id: str) -> tuple[int, int] | None:
        """Tokens of the prompt as it came, and those that a cache had; None: as vLLM says."""

    def looked_up(self, request_id: str) -> tuple[int, int] | None:
        """The same for a count of look-ups; no tokens where it was counted."""

    def report_so_far(self, request_id: str, num_blocks: int) -> dict[str, Any]:
        """The report of a request that goes on."""


class TrueFigures:
    """Of one scheduler.

    Args:
        key: of a report in ``kv_transfer_params``.
    """

    def __init__(self, scheduler: Any, teller: Teller, key: str) -> None:
        self.teller, self.key = teller, key
        self.manager: KVCacheManager = scheduler.kv_cache_manager
        self._record = self.manager.record_prefix_cache_stats
        self.manager.record_prefix_cache_stats = self.record  # type: ignore[method-assign]

    def record(self, request: Request, num_hits: int) -> None:
        """vLLM's count of look-ups in its prefix cache, in tokens of prompts as they came."""
        told, stats = self.teller.looked_up(request.request_id), self.manager.prefix_cache_stats
        if told is None or stats is None or request.num_preemptions:
            self._record(request, num_hits)
        elif told[0] and self.manager.enable_caching:
            stats.record(num_tokens=told[0], num_hits=told[1], preempted=False)

    def first_output(self, output: EngineCoreOutput) -> None:
        """Put a request's first output right, and let it carry the report."""
        request_id = output.request_id
        told, stats = self.teller.cached_of(request_id), output.prefill_stats
        if told is not None and stats is not None:
            stats.set(*told, 0)
            stats.num_cache_creation_tokens = 0
        if output.kv_transfer_params is None and output.finish_reason is None:
            blocks = sum(map(len, self.manager.get_block_ids(request_id)))
            output.kv_transfer_params = {self.key: self.teller.report_so_far(request_id, blocks)}

