"""Scheduler half of the connector: holds requests back, resizes them, reports on them.

A request is *pending* until its job's result arrives, then *compressed* (resized to K) or
*untouched* (plain vLLM). The steps are drawn in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qm_vllm.config import QuickMergeConfig
from qm_vllm.engine.facts import EngineFacts
from qm_vllm.engine.messages import BlockCopy, JobResult, StepMessage, WorkerMessage, WorkerStart
from qm_vllm.engine.requests import first_tokens
from qm_vllm.engine.requests.delivered import copies, publish
from qm_vllm.engine.requests.demands import Room
from qm_vllm.engine.requests.job_board import BoardEntry, JobBoard, Store
from qm_vllm.engine.requests.long_prompts import refused
from qm_vllm.engine.requests.memo import Memo, Outcome
from qm_vllm.engine.requests.minute_line import MinuteLine
from qm_vllm.engine.requests.native_runs import NativeRuns, Shadows, Step
from qm_vllm.engine.requests.planning import plan_or_reason
from qm_vllm.engine.requests.report import report_of
from qm_vllm.engine.requests.starting import told, warn
from qm_vllm.engine.requests.tally import Tally
from qm_vllm.engine.requests.telling import Telling
from qm_vllm.engine.requests.tracked import Tracked
from qm_vllm.engine.untouched import Untouched
from qm_vllm_patches.log import get_logger
from qm_vllm_patches.requests import Arrival

logger = get_logger(__name__)

OWN_SCHEDULER = "the engine has a scheduler_cls of its own"
MOST_STALLS = 3
"""How often a result is made again for a request before its kept ids are prefilled."""


class SchedulerSide:
    """State machine over all live requests."""

    def __init__(self, config: QuickMergeConfig, facts: EngineFacts) -> None:
        self.config, self.facts = config, facts
        self.board = JobBoard(config.max_live_jobs, config.max_source_tokens)
        self.memo = Memo(config.memo_bytes)
        self.native = NativeRuns()
        self.room = Room(config.max_source_tokens, no_native=OWN_SCHEDULER)
        self.store: Store | None = None
        self.tracked: dict[str, Tracked] = {}
        self.telling = Telling(self.tracked, facts)
        self.copies: list[BlockCopy] = []
        self.served: list[tuple[str, str]] = []
        self.growing = 0  # requests that have blocks and may need more
        self.tally, self.minute = Tally(), MinuteLine()
        warn(config, facts)

    # --- start -----------------------------------------------------------------------------
    def bind_blocks(self, store: Store) -> None:
        """vLLM's pool of KV blocks is there."""
        self.store = self.board.blocks = store
        self.room = replace(self.room, blocks=store.total)
        store.on_reset(self.restart)

    def bind_shadows(self, shadows: Shadows) -> None:
        """vLLM's scheduler prefills prompts for jobs."""
        self.native.shadows = shadows
        self.room = replace(self.room, no_native=None)

    def workers_started(self, messages: Sequence[WorkerStart]) -> None:
        """The workers have seen the model and their memory."""
        if messages:
            self.room = told(self.room, messages, self.config, self.facts)
            self.board.max_bytes = self.room.max_bytes

    # --- arrival ---------------------------------------------------------------------------
    def arrived(self, arrival: Arrival) -> None:
        """Plan a request; never raises, an engine must survive any request."""
        tracked = Tracked(arrival)
        self.tracked[arrival.request_id] = tracked
        plan = plan_or_reason(arrival, self.config, self.facts, self.room)
        if isinstance(plan, Untouched):
            self._leave(tracked, plan.kind, str(plan))
            return
        tracked.plan = plan
        tracked.skipped_cache = arrival.handle.skips_cache
        known = None if plan.config.details else self.memo.get(plan.spec.key)  # without details
        if known is None:
            self._wait(tracked)
            return
        tracked.cached = True
        self.tally.counts["memo_hits"] += 1
        self._resize(tracked, known)

    def _leave(self, tracked: Tracked, kind: str, reason: str) -> None:
        """To plain vLLM; one that it cannot read ends with the next step."""
        self.tally.untouched(kind)
        tracked.reason = refused(tracked.arrival.tokens, self.facts.max_model_len, reason)
        if tracked.reason != reason:
            self.native.broken.append(tracked.arrival.request_id)

    def _wait(self, tracked: Tracked) -> None:
        """Hold a request back until its job is done."""
        arrival, plan = tracked.arrival, tracked.plan
        assert plan is not None
        # The scheduler turns "ask again later" into "prefill everything" under this flag.
        arrival.handle.skips_cache = False
        tracked.leads = plan.spec.key not in self.board.entries
        self.board.join(plan.spec, plan.demand, arrival.request_id, arrival.priority)

    # --- prompts that vLLM prefills ---------------------------------------------------------
    def before_step(self) -> None:
        """Before vLLM schedules a step: end shadows that nobody needs, and start new ones."""
        for run in self.native.settle(self.board.running()):
            self._result(run.job, JobResult(error=run.error))
        for spec in self.board.take_new(self.growing, native=True):
            self.native.start(spec, self._users(self.board.entries[spec.key]))

    def shadow_ended(self, shadow: str) -> None:
        """vLLM has ended a shadow, well or not."""
        self.native.ended(shadow)

    def first_token(self, shadow: str, token: int) -> None:
        """A shadow sampled a token for the request that it was started for."""
        run = self.native.run_of(shadow)
        if run is not None and run.spec.key in self.board.entries:
            users = self._users(self.board.entries[run.spec.key])
            first_tokens.sampled(run, token, users, self.native.shadows)

    def _users(self, entry: BoardEntry) -> list[Tracked]:
        return [self.tracked[request_id] for request_id in sorted(entry.users)]

    # --- results ---------------------------------------------------------------------------
    def worker_message(self, message: WorkerMessage) -> None:
        """Resize the requests whose job has ended, or hand them to plain vLLM."""
        self.tally.level(worker_jobs=message.held)
        self.native.broken += message.broken
        for job, result in message.results.items():
            self._result(job, result)

    def _result(self, job: int, result: JobResult) -> None:
        first = self.native.complete(job, result, self.tally)
        entry = self.board.finish(job, 0 if result.error else len(result.kept))
        if entry is not None:
            self._ended(entry, result, first)

    def _ended(self, entry: BoardEntry, result: JobResult, first: int | None) -> None:
        self.tally.job(None if result.error else float(result.figures["seconds"]))
        outcome = None if result.error else Outcome.of(result, first)
        if outcome is not None:
            self.memo.put(entry.spec.key, outcome)
        for tracked in self._users(entry):
            served = tracked.prefills
            if outcome is None:
                self._fail(tracked, result.error or "unknown error")
                served = True
            elif tracked.pending:
                self._resize(tracked, outcome)
                tracked.details = result.details
            elif tracked.outcome is not None and tracked.outcome.kept != outcome.kept:
                self._fail(tracked, "the job kept other tokens the second time")
                served = True
            if served:
                entry.users.discard(tracked.arrival.request_id)
        if not entry.users:
            self.board.drop(entry.spec.key)
            return
        if self.store is not None and entry.blocks:
            handle = self._users(entry)[0].arrival.handle
            publish(self.store, handle, entry, len(result.kept), self.facts)

    def _resize(self, tracked: Tracked, outcome: Outcome) -> None:
        tracked.resize(outcome)
        arrival, spec = tracked.arrival, tracked.spec
        mean = spec.mean_kept(len(outcome.kept))
        facts = self.facts
        self.tally.compressed(arrival.tokens, mean, facts.block_size, facts.whole_groups)
        # Injected KV is found through the connector: the flag would make vLLM skip it.
        arrival.handle.skips_cache = tracked.skipped_cache and tracked.prefills
        first_tokens.begin_known(tracked, outcome, self.native.shadows)

    def _fail(self, tracked: Tracked, error: str) -> None:
        arrival = tracked.arrival
        logger.warning("qm_vllm: %s: %s", arrival.request_id, error)
        arrival.handle.skips_cache = tracked.skipped_cache
        if tracked.pending:
            self._leave(tracked, "failed", f"the compression failed: {error}")
            return
        if not tracked.recompute(error):  # as after a preemption, if the job fails when done again
            self.native.broken.append(arrival.request_id)

    # --- scheduling ------------------------------------------------------------------------
    def matched_tokens(self, request_id: str, computed: int) -> int | None:
        """How many positions the plug-in brings beyond ``computed`` that vLLM has; None: wait."""
        tracked = self.tracked.get(request_id)
        if tracked is not None and tracked.pending:
            return None
        missing = 0 if tracked is None else tracked.missing(computed)
        if tracked is None or tracked.plan is None or tracked.outcome is None or missing <= 0:
            return 0
        spec = tracked.plan.spec
        if self.config.encoder_batch or spec.native:  # rounding may be another this time
            spec = replace(spec, kept=tuple(tracked.outcome.kept))
        handle, priority = tracked.arrival.handle, tracked.arrival.priority
        if spec.key not in self.board.entries:
            whole = len(spec.token_ids) == len(tracked.outcome.kept)
            if whole and missing < self.facts.block_size:
                return 0  # all was kept: what a block does not hold is prefilled as usual
            found = handle.elsewhere(computed)  # a result may lie beside the cache, whole
            if found is None or found >= missing:
                return None if found is None else 0
        entry = self.board.join(spec, tracked.plan.demand, request_id, priority, again=True)
        return missing if entry.done else None

    def allocated(self, request_id: str, blocks: Sequence[list[int]], external: int) -> None:
        """Blocks were given: plan the copy of the positions that vLLM counts as ours."""
        tracked = self.tracked.get(request_id)
        if tracked is not None and not tracked.allocated:
            tracked.allocated, self.growing = True, self.growing + 1
        if tracked is None or tracked.plan is None:
            return
        if external:
            assert tracked.outcome is not None
            entry, kept = self.board.entries[tracked.plan.spec.key], len(tracked.outcome.kept)
            self.copies += copies(request_id, entry, kept, blocks, external, self.facts)
        self.served.append((tracked.plan.spec.key, request_id))

    def step_message(
        self, scheduled_tokens: int = 0, shadows: Sequence[Step] = (),
        counts: dict[str, int] | None = None,
    ) -> StepMessage:
        """What a worker hears of a step with so many tokens (``counts``: of each request), and of
        what it does of each shadow."""
        copies, self.copies = self.copies, []
        jobs = self.native.take_new() + self.board.take_new(self.growing)
        progress = self.native.progress(shadows)
        message = StepMessage(
            jobs=jobs, copies=copies, releases=self.board.take_releases(), progress=progress,
            counts=counts if counts and progress else {},
        )
        # Their blocks go back only now: nobody may get in this step what is still to be copied.
        served, self.served = self.served, []
        for key, request_id in served:
            self.board.leave(key, request_id)
        self._let_go(self.board.stalled(scheduled_tokens))
        if self.board.changed():
            self.tally.level(jobs_waiting=len(self.board.queue), jobs_live=self.board.live())
        return message

    def _let_go(self, entries: Sequence[BoardEntry]) -> None:
        """Drop results for which nothing moves; a request that was served from one asks again."""
        for entry in entries:
            for tracked in self._users(entry):
                tracked.stalls += 1
                # A long answer before a preemption may take the place of the result for good.
                if tracked.stalls == MOST_STALLS:
                    self._fail(tracked, "there are too few KV blocks to deliver its result")
            self.board.drop(entry.spec.key)

    # --- end -------------------------------------------------------------------------------
    def finished(self, request_id: str, num_blocks: int) -> dict[str, Any]:
        """The request's report; everything kept for it is let go."""
        tracked = self.tracked.pop(request_id, None)
        if tracked is None:
            return {}
        self.growing -= tracked.allocated
        if tracked.plan is not None:
            self.board.leave(tracked.plan.spec.key, request_id)
        if tracked.pending:
            self.tally.untouched("ended")
        return report_of(tracked, num_blocks, self.facts)

    def take_counts(self) -> dict[str, Any] | None:
        """Counts since the last call, for vLLM's metrics; a log line about them once a minute."""
        self.minute.observe(counts := self.tally.take())
        return counts

    def reset(self) -> None:
        """The connector's own cache shall be cleared too: forget all results."""
        self.memo.clear()
        self.restart()

    def restart(self) -> None:
        """vLLM clears its prefix cache, as after new weights: KV that was made is not valid.

        Jobs start again, with blocks of their own. A request that has no blocks yet is chosen for
        again; one that was preempted keeps its tokens, and its job must keep the same.
        """
        self.board.restart()
        self.memo.forget_answers()
        for tracked in [one for one in self.tracked.values() if one.undelivered]:
            assert tracked.plan is not None
            tracked.outcome, tracked.details, tracked.cached = None, None, False
            tracked.arrival.handle.restore(tracked.plan.spec.token_ids, tracked.arrival.salt)
            self._wait(tracked)
