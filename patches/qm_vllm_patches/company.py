"""Our connector beside others, in vLLM's ``MultiConnector``: who it is, and what the others hear.

vLLM's wrapper hands every hook to all of them and lets one of them load a request. Three things
it cannot know: a request that we shrink is another one for those that look at hashes of blocks;
blocks that we take from the pool are written into; a shadow must compute its last tokens itself.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm.v1.request import RequestStatus

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


class _Target(NamedTuple):
    """Plays vLLM's ``KVCacheBlockCopy``; none of these is ever carried out."""

    src_block_id: int
    dst_block_id: int


def split(connector: Any, kind: type) -> tuple[Any, list[Any]]:
    """Our connector and those beside it.

    Args:
        connector: the engine's own; None where there is none. kind: class of ours.

    Returns:
        None and all of them where ours is not there.
    """
    members = list(getattr(connector, "sub_connectors", [connector]))
    ours = next((one for one in members if isinstance(one, kind)), None)
    return ours, [one for one in members if one is not ours]


class Company:
    """The other connectors of one scheduler.

    Args:
        connector: vLLM's wrapper around all. others: without ours, which goes before them.
        limits: positions that a shadow may have from elsewhere, by the shadow's id.
    """

    def __init__(self, connector: Any, others: Sequence[Any], limits: dict[str, int]) -> None:
        self.others, self.limits = list(others), limits
        self.taken: list[int] = []
        self.stale: set[str] = set()
        self._matched = connector.get_num_new_matched_tokens
        connector.get_num_new_matched_tokens = self.matched
        self._build = connector.build_connector_meta
        connector.build_connector_meta = self.build
        for other in self.others:
            other.build_connector_meta = self._told(other.build_connector_meta)

    def take(self, ids: Sequence[int]) -> None:
        """We took these blocks from the pool, and write into them in the step that comes."""
        self.taken += ids

    def changed(self, request: Request) -> None:
        """A request that has no blocks got other ids or another salt: for the others, it is new.

        They are told when it is asked for, as one may still store what it had before.
        """
        self.stale.add(request.request_id)

    def _renew(self, request: Request) -> bool:
        """Tell the others of a changed request; whether all of them were ready for that."""
        asked = [one.get_num_new_matched_tokens(request, 0) for one in self.others]
        if any(count is None for count, _ in asked):
            return False
        for other in self.others:
            other.on_new_request(request)
        self.stale.discard(request.request_id)
        return True

    def elsewhere(self, request: Request, computed: int) -> int | None:
        """How many positions beyond those computed another connector brings; None: ask again."""
        for other in self.others:
            count, _ = other.get_num_new_matched_tokens(request, computed)
            if count is None or count:
                return None if count is None else int(count)
        return 0

    def matched(self, request: Request, computed: int) -> tuple[int | None, bool]:
        """The wrapper's answer; a shadow gets no more than it may have from elsewhere."""
        if request.request_id in self.stale and not self._renew(request):
            return None, False
        count, later = self._matched(request, computed)
        limit = self.limits.get(request.request_id)
        if limit is None or not count or computed + count <= limit:
            return count, later
        # Of a sliding window other blocks are needed at another place, so none can be cut off.
        request.kv_transfer_params = {"max_load_tokens": max(0, limit - computed)}
        if not self._renew(request):
            return None, False
        count, later = self._matched(request, computed)
        return (count, later) if count is None or computed + count <= limit else (0, False)

    def build(self, output: SchedulerOutput) -> Any:
        """The wrapper's message to the workers of a step, for which ours may take blocks."""
        meta = self._build(output)
        self.taken = []
        self.stale -= output.finished_req_ids
        return meta

    def _told(self, build: Any) -> Any:
        """Blocks that we took look like the targets of copies, as which vLLM names its own.

        So whoever has still to copy what a former owner left in them does it first.
        """

        def build_connector_meta(output: SchedulerOutput) -> Any:
            if self.taken:
                copies: list[Any] = [*(output.kv_cache_block_copies or ())]
                copies += [_Target(0, block) for block in self.taken]
                output = replace(output, kv_cache_block_copies=copies)
            return build(output)

        return build_connector_meta


def loading(requests: Iterable[Request], there: Container[str]) -> bool:
    """Whether KV of one of these is on its way from another connector.

    Args:
        there: whose KV has come; behind one that finds no blocks they still wait to be looked at.
    """
    return any(
        one.status == RequestStatus.WAITING_FOR_REMOTE_KVS and one.request_id not in there
        for one in requests
    )
