"""What is heard of a request while it runs, in tokens of the prompt that its client sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qm_vllm.engine.facts import EngineFacts
from qm_vllm.engine.requests.report import report_of
from qm_vllm.engine.requests.tracked import Tracked


class Telling:
    """Reads the live requests; changes nothing.

    ``cached_of`` counts what was found instead of computed. An in-model job finds nothing, the
    prefill of a native one what vLLM's prefix cache has. A request that is served from the job of
    another, or from a remembered result, found its whole prompt but the last token, which a
    model must run to go on.
    """

    def __init__(self, tracked: Mapping[str, Tracked], facts: EngineFacts) -> None:
        self._tracked, self._facts = tracked, facts

    def cached_of(self, request_id: str) -> tuple[int, int] | None:
        """Tokens of the prompt as it came, and those that a cache had; None: as vLLM says."""
        tracked = self._tracked.get(request_id)
        if tracked is None or tracked.plan is None or tracked.reason or tracked.prefills:
            return None
        tokens = tracked.arrival.tokens
        if not tracked.leads:
            return tokens, tokens - 1
        if tracked.outcome is None:  # its first token is there, with the figures of its prefill
            return None
        return tokens, int(tracked.outcome.figures.get("prefill_cached_tokens") or 0)

    def looked_up(self, request_id: str) -> tuple[int, int] | None:
        """The same, for vLLM's count of look-ups; no tokens where a shadow was counted for it."""
        told, tracked = self.cached_of(request_id), self._tracked.get(request_id)
        if told is None or tracked is None or tracked.plan is None:
            return None
        return (0, 0) if tracked.leads and tracked.plan.spec.native else told

    def report_so_far(self, request_id: str, num_blocks: int) -> dict[str, Any]:
        """The report of a request that goes on; empty for one that is not known.

        Args:
            num_blocks: that it holds now.
        """
        tracked = self._tracked.get(request_id)
        return {} if tracked is None else report_of(tracked, num_blocks, self._facts)
