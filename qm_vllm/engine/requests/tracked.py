"""One live request, as the plug-in sees it."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from qm_vllm.engine.messages import JobSpec
from qm_vllm.engine.requests.memo import Outcome
from qm_vllm.engine.requests.planning import RequestPlan
from qm_vllm_patches.requests import Arrival


@dataclass
class Tracked:
    """One request that the plug-in has seen and that has not finished.

    Attributes:
        reason: why it is untouched; None while pending or compressed.
        begun: the first token of its answer, if it was sampled over the whole prompt.
        leads: its job was begun for it; others that wait for the job share what it computes.
        skipped_cache: it did not want the prefix cache to be read.
        allocated: it has got blocks, so its prompt can no longer change.
        stalls: how often its result was dropped because nothing moved.
        arrived: by the clock of ``time.monotonic``. waited: seconds until its result was there.
    """

    arrival: Arrival
    reason: str | None = None
    plan: RequestPlan | None = None
    outcome: Outcome | None = None
    details: dict[str, Any] | None = None
    cached: bool = False
    leads: bool = False
    begun: list[int] = field(default_factory=list)
    skipped_cache: bool = False
    allocated: bool = False
    stalls: int = 0
    arrived: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def pending(self) -> bool:
        """Its job's result is not known yet."""
        return self.reason is None and self.outcome is None

    @property
    def undelivered(self) -> bool:
        """It was resized, and nothing depends on that yet."""
        bound = self.allocated or self.begun or self.notes or self.arrival.handle.started
        return self.outcome is not None and not bound

    @property
    def prefills(self) -> bool:
        """vLLM prefills the kept ids."""
        return self.plan is not None and self.plan.config.delivery == "prefill"

    @property
    def spec(self) -> JobSpec:
        """Of its job."""
        assert self.plan is not None
        return self.plan.spec

    def resize(self, outcome: Outcome) -> None:
        """Its result is there: from now on it is a request with K positions."""
        kept = [self.spec.token_ids[i] for i in outcome.kept] + self.begun
        handle, sizes = self.arrival.handle, self.spec.group_kept
        handle.resize(kept, self.salt())
        if sizes:
            assert self.spec.block_size is not None
            handle.leave_out((max(sizes) - min(sizes)) // self.spec.block_size)
        self.outcome, self.waited = outcome, time.monotonic() - self.arrived

    def missing(self, computed: int) -> int:
        """Positions of its result beyond those computed; 0 where vLLM prefills what is left."""
        if self.outcome is None or self.reason is not None or self.prefills or self.notes:
            return 0
        return len(self.outcome.kept) - 1 - computed

    def recompute(self, error: str) -> bool:
        """It was resized, and its KV cannot be brought: let vLLM compute it.

        From the kept ids; where these stand for images, from the whole prompt, as long as the
        request has not started.

        Args:
            error: why.

        Returns:
            Whether it can go on.
        """
        arrival, handle = self.arrival, self.arrival.handle
        if not arrival.media:
            self.notes.append(f"KV was recomputed from the kept ids: {error}")
            handle.resalt(chained_salt(arrival.salt, arrival.request_id))
            return True
        if handle.started:
            return False
        assert self.plan is not None
        handle.restore([*self.plan.spec.token_ids, *self.begun], arrival.salt)
        self.outcome, self.reason = None, f"its result could not be delivered: {error}"
        return True

    def salt(self) -> str | None:
        """Of the blocks of the shrunk prompt: injected KV is bound to its job, not to the ids."""
        if self.prefills:
            return self.arrival.salt
        assert self.plan is not None
        unshared = f"|{self.arrival.request_id}" if self.skipped_cache else ""
        return chained_salt(self.arrival.salt, self.plan.spec.key + unshared)


SECRET = secrets.token_hex(16)
"""Of this process. A client may choose any salt for a plain prompt, so ours must not be known."""


def chained_salt(original: str | None, key: str) -> str:
    """A salt that is bound to a key and to the user's own salt; no client can name it."""
    return hashlib.sha256(repr((SECRET, original or "", key)).encode()).hexdigest()
