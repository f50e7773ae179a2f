"""Jobs whose prompts vLLM prefills: which shadow works for which, and what becomes of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from qm_vllm.engine.messages import JobResult, JobSpec, Progress
from qm_vllm.engine.requests.tally import Tally
from qm_vllm.engine.requests.tracked import Tracked
from qm_vllm.layers import WINDOW_QUERIES
from qm_vllm_patches.requests import RequestHandle

MOST_PREEMPTIONS = 3
"""How often vLLM may begin a prompt again before it is left to the request itself."""
MOST_STEPS = 8
"""Steps after a shadow's end in which its result must come: it comes with the next."""


class Step(Protocol):
    """What a step of the engine does of a shadow (``qm_vllm_patches.scheduler.ShadowStep``)."""

    @property
    def shadow(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def blocks(self) -> tuple[list[int], ...]: ...


class Shadows(Protocol):
    """The engine's shadows, as ``qm_vllm_patches.scheduler.Shadows`` has them."""

    def start(
        self, handle: RequestHandle, shadow: str, token_ids: Sequence[int], salt: str | None,
        last: int, first: bool,
    ) -> None: ...
    def begin(self, handle: RequestHandle, token: int, shadow: str | None = None) -> None: ...
    def stop(self, shadow: str) -> None: ...
    def give_up(self, request_id: str) -> None: ...


@dataclass
class Run:
    """One shadow.

    Attributes:
        reached: positions that are computed. hit: those that the prefix cache had at first.
        begun: how often vLLM began it again.
        user: the request that it was started for. gives: what it samples is the first token of this
            one's answer. shared: and that of every other which samples greedily.
        first: that token, once it was sampled. late: steps since the shadow's end.
        error: why there will be no result.
    """

    job: int
    spec: JobSpec
    shadow: str
    user: str
    gives: bool
    shared: bool
    reached: int = 0
    hit: int | None = None
    begun: int = 0
    first: int | None = None
    late: int | None = None
    error: str | None = None


class NativeRuns:
    """The live shadows' jobs. Called once before each step is scheduled, once after.

    Attributes:
        broken: requests that must end with an error.
    """

    def __init__(self) -> None:
        self.shadows: Shadows | None = None
        self.runs: dict[int, Run] = {}
        self.broken: list[str] = []
        self.new: list[JobSpec] = []

    def start(self, spec: JobSpec, users: Sequence[Tracked]) -> None:
        """Let vLLM prefill a job's prompt.

        Args:
            users: requests that wait for the job; the shadow stands for one of them, if it can be
                for one that gets its first token from it.
        """
        assert self.shadows is not None
        tracked = min(users, key=lambda one: (not one.arrival.first, not one.leads))
        user = tracked.arrival.request_id
        shadow = f"{user}|qm_vllm|{spec.id}"
        # What is sampled behind a hint goes on with the hint: it is nobody's first token.
        plain = not spec.hint
        first = plain and tracked.arrival.first and tracked.pending and not tracked.begun
        # A shadow that gives its own user nothing samples greedily, also in a job done again.
        shared = plain and (tracked.arrival.first_shared or not first)
        self.runs[spec.id] = Run(spec.id, spec, shadow, user, first, shared)
        self.new.append(spec)
        self.shadows.start(
            tracked.arrival.handle, shadow, spec.read_ids, tracked.arrival.salt,
            computed_last(spec, tracked.skipped_cache), first,
        )

    def run_of(self, shadow: str) -> Run | None:
        """What a shadow works for."""
        return next((run for run in self.runs.values() if run.shadow == shadow), None)

    def take_new(self) -> list[JobSpec]:
        """Jobs that were started since the last call."""
        new, self.new = self.new, []
        return new

    def settle(self, wanted: Collection[int]) -> list[Run]:
        """End the shadows of jobs that nobody waits for any more, and broken requests.

        Args:
            wanted: ids of the jobs that run.

        Returns:
            Those of them that will have no result.
        """
        assert self.shadows is not None
        broken, self.broken = self.broken, []
        for request_id in broken:
            self.shadows.give_up(request_id)
        over = [
            run for job, run in self.runs.items() if job not in wanted or run.error is not None
        ]
        for run in over:
            del self.runs[run.job]
            self.shadows.stop(run.shadow)
        return [run for run in over if run.job in wanted]

    def progress(self, steps: Sequence[Step]) -> list[Progress]:
        """What a worker has to know of the step that was scheduled."""
        by_shadow = {run.shadow: run for run in self.runs.values()}
        for over in self.runs.values():
            over.late = None if over.late is None else over.late + 1
            if over.late == MOST_STEPS:
                over.error = "the workers gave no result after its prefill"
        found = []
        for step in steps:
            run = by_shadow.get(step.shadow)
            if run is None:
                continue
            run.hit = step.start if run.hit is None else run.hit
            if step.start < run.reached:
                run.begun += 1
            if run.begun >= MOST_PREEMPTIONS:
                run.error = f"vLLM preempted its prefill {run.begun} times: too few KV blocks"
            run.reached, count, rows = step.stop, len(run.spec.token_ids), run.spec.rows
            if step.stop > min(rows - WINDOW_QUERIES, count - 1) and step.start < rows:
                blocks = step.blocks if step.stop >= count else ()
                found.append(Progress(run.job, step.shadow, step.start, step.stop, blocks))
        return found

    def ended(self, shadow: str) -> None:
        """A shadow has ended. The result of a whole prompt comes with the next step, or never."""
        run = self.run_of(shadow)
        if run is None or run.error is not None:
            return
        run.late = 0
        if run.reached < run.spec.rows:
            run.error = "vLLM ended its prefill without a result"

    def complete(self, job: int, result: JobResult, tally: Tally) -> int | None:
        """A result came: the prompt's own figures belong to it, and are counted.

        Returns:
            The first token of all answers to it that are sampled greedily, if there is one.
        """
        run = self.runs.get(job)
        if run is None or result.error:
            return None
        result.figures["prefill_cached_tokens"] = run.hit
        tally.counts["shadow_prefills"] += 1
        tally.counts["shadow_tokens"] += run.spec.rows
        tally.counts["shadow_cached_tokens"] += run.hit or 0
        return run.first


def computed_last(spec: JobSpec, skips_cache: bool) -> int:
    """How many tokens at the end of what a shadow reads it must compute itself.

    The last one's forward ends the prefill; the queries that say what stays are looked at. Before a
    hint the prompt's last token is needed, too: in its step a sliding window still has all that the
    request will need of it.
    """
    looked = 1 if not spec.looks else spec.rows if skips_cache else spec.window
    return max(looked, len(spec.hint) + 1)
