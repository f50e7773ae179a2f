"""Scheduler half of the connector: holds requests back, resizes them, reports on them.

A request is *pending* until its job's result arrives, then *compressed* (resized to K) or
*untouched* (plain vLLM). The steps are drawn in docs/architecture.md.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qm_vllm.config import QuickMergeConfig
from qm_vllm.engine.facts import EngineFacts
from qm_vllm.engine.messages import JobSpec, LoadSpec, QuickMergeMetadata, QuickMergeWorkerMetadata
from qm_vllm.engine.metrics import QuickMergeStats, Tally
from qm_vllm.engine.request_resize import chained_salt, resalt, resize_prompt
from qm_vllm.engine.requests.chat_turns import places
from qm_vllm.engine.requests.job_board import JobBoard
from qm_vllm.engine.requests.memo import Memo, Outcome
from qm_vllm.engine.requests.minute_line import MinuteLine
from qm_vllm.engine.requests.planning import RequestPlan, Untouched, plan_request
from qm_vllm.engine.requests.report import compressed_report, untouched_report
from qm_vllm.turns import kept_turns
from qm_vllm_patches.log import get_logger

if TYPE_CHECKING:
    from vllm.v1.request import Request

logger = get_logger(__name__)


@dataclass
class Tracked:
    """One request that the plug-in has seen and that has not finished."""

    request: Request
    source_tokens: int
    reason: str | None = None
    """Why it is untouched; None while pending or compressed."""
    plan: RequestPlan | None = None
    spec: JobSpec | None = None
    outcome: Outcome | None = None
    cached: bool = False
    skipped_cache: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def pending(self) -> bool:
        return self.reason is None and self.outcome is None

    @property
    def plan_delivery(self) -> str | None:
        return None if self.plan is None else self.plan.config.delivery


class SchedulerSide:
    """State machine over all live requests."""

    def __init__(self, config: QuickMergeConfig, facts: EngineFacts) -> None:
        self.config, self.facts = config, facts
        self.board = JobBoard(config.max_live_jobs, facts.max_source_tokens)
        self.memo = Memo(config.memo_entries)
        self.tracked: dict[str, Tracked] = {}
        self.loads: list[LoadSpec] = []
        self.tally = Tally()
        self.minute = MinuteLine()

    # --- arrival ---------------------------------------------------------------------------
    def on_new_request(self, request: Request) -> None:
        """Plan a request; never raises, an engine must survive any request."""
        tracked = Tracked(request, request.num_prompt_tokens)
        self.tracked[request.request_id] = tracked
        try:
            tracked.plan = plan_request(request, self.config, self.facts)
            tracked.spec = self._spec(request, tracked.plan)
        except Untouched as why:
            tracked.reason = str(why)
            self.tally.untouched(why.kind)
            return
        except Exception as error:
            logger.exception("qm_vllm: planning %s failed", request.request_id)
            tracked.reason = f"planning failed: {type(error).__name__}: {error}"
            self.tally.untouched("failed")
            return
        tracked.skipped_cache = request.skip_reading_prefix_cache
        known = self.memo.get(tracked.spec.key)
        if known is not None:
            tracked.cached = True
            self.tally.counts["memo_hits"] += 1
            self._resize(tracked, known)
            return
        # The scheduler turns "ask again later" into "prefill everything" under this flag.
        request.skip_reading_prefix_cache = False
        self.board.join(tracked.spec, request.request_id)

    def _spec(self, request: Request, plan: RequestPlan) -> JobSpec:
        assert request.prompt_token_ids is not None
        ids, config = request.prompt_token_ids, plan.config
        block_size = self.facts.block_size if config.delivery == "inject" else None
        digest = hashlib.sha256(array("q", ids).tobytes())
        layers = (plan.encoder_layers, *plan.score_layers, block_size)
        salt = repr(request.cache_salt)
        for part in (config.fingerprint(), self.facts.model_key, repr(layers), salt):
            digest.update(part.encode())
        chat = self.facts.chat.find(ids) if config.keep_roles else []
        turns = kept_turns(config, chat, len(ids))
        special = self.facts.special_ids if config.protect_special else frozenset()
        return JobSpec(
            key=digest.hexdigest(),
            token_ids=list(ids),
            config=config,
            encoder_layers=plan.encoder_layers,
            score_layers=plan.score_layers,
            special_positions=places(ids, special),
            block_size=block_size,
            turns=tuple(turns),
        )

    # --- results ---------------------------------------------------------------------------
    def on_worker_output(self, metadata: QuickMergeWorkerMetadata) -> None:
        """Resize the requests whose job has ended, or hand them to plain vLLM."""
        self.tally.level(worker_jobs=metadata.held)
        for key, result in metadata.results.items():
            entry = self.board.entries.get(key)
            if entry is None:
                continue
            entry.done = True
            self.tally.job(None if result.error else float(result.figures["seconds"]))
            outcome = None if result.error else self.memo.put(result)
            for request_id in sorted(entry.users):
                tracked = self.tracked[request_id]
                served = tracked.plan_delivery == "prefill"
                if outcome is None:
                    self._fail(tracked, result.error or "unknown error")
                    served = True
                elif tracked.pending:
                    self._resize(tracked, outcome)
                elif tracked.outcome is not None and tracked.outcome.kept != outcome.kept:
                    self._fail(tracked, "the job kept other tokens the second time")
                    served = True
                if served:
                    entry.users.discard(request_id)
            if not entry.users:
                self.board.drop(key)

    def _resize(self, tracked: Tracked, outcome: Outcome) -> None:
        request, spec = tracked.request, tracked.spec
        assert spec is not None
        inject = spec.config.delivery == "inject"
        salt = None
        if inject:
            unshared = f"|{request.request_id}" if tracked.skipped_cache else ""
            salt = chained_salt(request.cache_salt, spec.key + unshared)
        resize_prompt(request, [spec.token_ids[i] for i in outcome.kept], salt)
        tracked.outcome = outcome
        self.tally.compressed(
            tracked.source_tokens, len(outcome.kept), self.facts.block_size
        )
        # Injected KV is found through the connector: the flag would make vLLM skip it.
        request.skip_reading_prefix_cache = False if inject else tracked.skipped_cache

    def _fail(self, tracked: Tracked, error: str) -> None:
        request = tracked.request
        logger.warning("qm_vllm: %s: %s", request.request_id, error)
        request.skip_reading_prefix_cache = tracked.skipped_cache
        if tracked.pending:
            tracked.reason = f"the compression failed: {error}"
            self.tally.untouched("failed")
            return
        # Already resized (a redo after preemption failed): vLLM prefills the kept ids.
        tracked.notes.append(f"KV was recomputed from the kept ids: {error}")
        resalt(request, chained_salt(request.cache_salt, request.request_id))

    # --- scheduling ------------------------------------------------------------------------
    def matched_tokens(self, request: Request, computed: int) -> tuple[int | None, bool]:
        """How many positions the plug-in will write beyond ``computed`` local ones."""
        tracked = self.tracked.get(request.request_id)
        if tracked is None or tracked.reason is not None:
            return 0, False
        if tracked.pending:
            return None, False
        assert tracked.outcome is not None
        assert tracked.spec is not None
        missing = len(tracked.outcome.kept) - 1 - computed
        if tracked.plan_delivery == "prefill" or missing <= 0 or tracked.notes:
            return 0, False
        spec = tracked.spec
        if self.config.encoder_batch:  # rounding, hence the choice, may be another this time
            spec = replace(spec, kept=tuple(tracked.outcome.kept))
        entry = self.board.join(spec, request.request_id, urgent=True)
        return (missing, False) if entry.done else (None, False)

    def after_allocation(self, request: Request, block_ids: list[int], external: int) -> None:
        """Blocks were given: plan the load of the positions that vLLM counts as ours."""
        tracked = self.tracked.get(request.request_id)
        if tracked is None or tracked.spec is None:
            return
        if external:
            assert tracked.outcome is not None
            stop = len(tracked.outcome.kept) - 1
            self.loads.append(
                LoadSpec(request.request_id, tracked.spec.key, block_ids, stop - external, stop)
            )
        self.board.leave(tracked.spec.key, request.request_id)

    def build_metadata(self) -> QuickMergeMetadata:
        """This step's message to the worker."""
        loads, self.loads = self.loads, []
        # Releases first: they make room for new jobs.
        metadata = QuickMergeMetadata(
            releases=self.board.take_releases(), jobs=self.board.take_new(), loads=loads
        )
        if self.board.changed():
            self.tally.level(jobs_waiting=len(self.board.queue), jobs_live=self.board.live())
        return metadata

    # --- end -------------------------------------------------------------------------------
    def finished(self, request: Request, num_blocks: int) -> dict[str, Any]:
        """The request's report; everything kept for it is let go."""
        tracked = self.tracked.pop(request.request_id, None)
        if tracked is None:
            return {}
        if tracked.spec is not None:
            self.board.leave(tracked.spec.key, request.request_id)
        if tracked.outcome is None:
            if tracked.reason is None:
                self.tally.untouched("ended")
            reason = tracked.reason or "ended before the compression was done"
            return untouched_report(tracked.source_tokens, num_blocks, self.facts, reason)
        assert tracked.plan is not None
        assert tracked.spec is not None
        return compressed_report(
            tracked.source_tokens, num_blocks, self.facts, tracked.plan, tracked.outcome,
            tracked.spec.turns, cached=tracked.cached, notes=tracked.notes,
        )

    def take_stats(self) -> QuickMergeStats | None:
        """Counts since the last call, for vLLM's metrics; a log line about them once a minute."""
        stats = self.tally.take()
        self.minute.observe(stats)
        return stats

    def reset(self) -> None:
        """vLLM's prefix cache was reset: forget results too."""
        self.memo.clear()
