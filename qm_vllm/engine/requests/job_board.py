"""Which jobs wait, which run, what KV blocks they hold, and which requests need each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from qm_vllm.engine.messages import JobSpec
from qm_vllm_patches.requests import RequestHandle

PATIENCE = 3
"""Steps without any work after which results let go of their blocks."""
SPARE = 100
"""A hundredth of the blocks is left to requests that run and grow."""


class Blocks(Protocol):
    """KV blocks of the engine, as ``qm_vllm_patches.block_pool.BlockStore`` has them."""

    @property
    def total(self) -> int: ...
    @property
    def free(self) -> int: ...
    def take(self, count: int) -> list[int]: ...
    def give_back(self, ids: Sequence[int]) -> None: ...


class Store(Blocks, Protocol):
    """The engine's KV blocks, and its prefix cache (``qm_vllm_patches.block_pool``)."""

    def publish(
        self, handle: RequestHandle, ids: Sequence[int], group: int = 0, first: int = 0
    ) -> None: ...
    def on_reset(self, callback: Callable[[], None]) -> None: ...


@dataclass(frozen=True)
class Demand:
    """What a job needs.

    Attributes:
        bytes: of worker memory while it runs.
        blocks: KV blocks that it holds while it runs: one for each block of what is read, or those
            of its result where vLLM prefills the prompt; 0 without delivery.
        kept: KV blocks of its result, at most.
        spare: blocks that are needed beside these: by vLLM for the prompt, if it prefills it, or
            by a request that is served from the result.
    """

    bytes: int
    blocks: int
    kept: int
    spare: int

    def fits(self, total_blocks: int) -> bool:
        """Whether a pool of so many blocks can ever serve it."""
        return max(self.blocks, self.kept + self.spare) <= total_blocks


@dataclass
class BoardEntry:
    """A job and the requests that wait for its result or for its blocks.

    Attributes:
        spec: carries the id and the blocks once it was sent.
        rank: in the queue: its most urgent priority, not whether one has waited before, its number.
        blocks: leased so far; after its end those of the result.
    """

    spec: JobSpec
    demand: Demand
    rank: tuple[int, bool, int] = (0, True, 0)
    users: set[str] = field(default_factory=set)
    blocks: list[int] = field(default_factory=list)
    sent: bool = False
    done: bool = False

    @property
    def running(self) -> bool:
        """A worker holds its states."""
        return self.sent and not self.done


class JobBoard:
    """Admits jobs to the worker by priority, then as they came; one job serves all equal requests.

    The first in the queue collects blocks as they become free, so that it is not overtaken for
    ever by requests that need fewer. Nobody else in the queue holds any. No job stops for another.

    Args:
        max_jobs: that a worker may run at once.
        max_tokens: source tokens of all jobs that run; a longer one runs alone. None: any.
        max_bytes: that running jobs may hold. A job alone may hold more: what is too large for the
            engine was refused before.
    """

    def __init__(
        self, max_jobs: int, max_tokens: int | None = None, max_bytes: int | None = None
    ) -> None:
        self.max_jobs, self.max_tokens, self.max_bytes = max_jobs, max_tokens, max_bytes
        self.entries: dict[str, BoardEntry] = {}
        self.queue: list[str] = []
        self.blocks: Blocks | None = None
        self._releases: list[int] = []
        self._next_id, self._arrivals = 1, 0
        self._levels, self._idle_steps, self._rest = (0, 0), 0, False

    def live(self) -> int:
        """Jobs that were sent and whose result was not delivered."""
        return sum(entry.sent for entry in self.entries.values())

    def running(self) -> set[int]:
        """Ids of jobs that a worker holds."""
        return {entry.spec.id for entry in self.entries.values() if entry.running}

    def changed(self) -> bool:
        """Whether the numbers of waiting and live jobs differ from the last call's."""
        before, self._levels = self._levels, (len(self.queue), self.live())
        return before != self._levels

    def join(
        self, spec: JobSpec, demand: Demand, request_id: str, priority: int = 0, *,
        again: bool = False,
    ) -> BoardEntry:
        """Make a request a user of the job, which is queued if it is new.

        Args:
            priority: the lower, the earlier; a job that waits is as urgent as its most urgent user.
            again: the request has had its turn in the queue before.
        """
        entry = self.entries.get(spec.key)
        if entry is None:
            self._arrivals += 1
            rank = (priority, not again, self._arrivals)
            entry = self.entries[spec.key] = BoardEntry(spec, demand, rank)
            self._queue(spec.key)
        elif priority < entry.rank[0]:
            entry.rank = (priority, *entry.rank[1:])
            self._queue()
        entry.users.add(request_id)
        return entry

    def _queue(self, *keys: str) -> None:
        self.queue += keys
        self.queue.sort(key=lambda key: self.entries[key].rank)

    def leave(self, key: str, request_id: str) -> None:
        """A request was served, failed or ended; a job without users is dropped."""
        entry = self.entries.get(key)
        if entry is None:
            return
        entry.users.discard(request_id)
        if not entry.users:
            self.drop(key)

    def drop(self, key: str) -> None:
        """Forget a job and let go of what it holds."""
        entry = self.entries.pop(key)
        if not entry.sent:
            self.queue.remove(key)
        self._stop(entry)

    def finish(self, job_id: int, kept: int) -> BoardEntry | None:
        """A result came.

        Args:
            kept: positions of the result; 0 if the job failed.

        Returns:
            The job, with the blocks of its K - 1 positions; None if nobody waits for this run.
        """
        for entry in self.entries.values():
            if entry.running and entry.spec.id == job_id:
                entry.done = True
                self._give_back(entry, self._result_blocks(entry, kept))
                return entry
        return None

    @staticmethod
    def _result_blocks(entry: BoardEntry, kept: int) -> int:
        if entry.spec.native and kept:
            return len(entry.blocks)
        size = entry.spec.block_size
        return -(-max(0, kept - 1) // size) if size else 0

    def restart(self) -> None:
        """What runs or has run is no longer valid: everything goes back into the queue."""
        self._again([entry for entry in self.entries.values() if entry.sent])
        self.stop_collecting()

    def _again(self, entries: Sequence[BoardEntry]) -> None:
        for entry in entries:
            self._stop(entry)
            entry.sent = entry.done = False
        self._queue(*(entry.spec.key for entry in entries))

    def stop_collecting(self) -> None:
        """Give back what jobs in the queue have collected."""
        for key in self.queue:
            self._give_back(self.entries[key], 0)

    def stalled(self, scheduled_tokens: int) -> list[BoardEntry]:
        """Results that must let go of their blocks, because nothing has moved for some steps.

        vLLM serves its queue in order. A request at its head that finds too few free blocks holds
        up the ones behind it, whose results hold the blocks that it wants. What was published is
        found in the prefix cache as long as nobody needs its place; else the job runs again.
        A prompt that vLLM is to prefill waits in that queue, too, so it goes back into ours.

        Args:
            scheduled_tokens: that vLLM runs in this step.
        """
        running = [entry for entry in self.entries.values() if entry.running]
        moves = scheduled_tokens or not all(entry.spec.native for entry in running)
        self._idle_steps = 0 if moves else self._idle_steps + 1
        if self._idle_steps < PATIENCE:
            return []
        self._idle_steps = 0
        self._again(running)
        self.stop_collecting()
        self._rest = True
        return [entry for entry in self.entries.values() if entry.done and entry.blocks]

    def take_new(self, growing: int = 0, *, native: bool = False) -> list[JobSpec]:
        """Jobs to begin now. The two kinds are taken at different moments of a step, in one order.

        Args:
            growing: requests that have blocks and may need more; one is left to each.
            native: take those whose prompts vLLM prefills, before it schedules a step; else those
                that a worker encodes, after it.
        """
        if native and self._rest:  # what holds up vLLM's own queue gets one step to itself
            self._rest = False
            return []
        specs: list[JobSpec] = []
        for key in self.queue[1:]:  # a more urgent one may have gone before
            self._give_back(self.entries[key], 0)
        while self.queue:
            entry = self.entries[self.queue[0]]
            if entry.spec.native != native or not self._has_room(entry):
                break
            if not self._lease(entry, growing):
                break
            self.queue.pop(0)
            entry.sent = True
            entry.spec = replace(entry.spec, id=self._next_id, blocks=tuple(entry.blocks))
            self._next_id += 1
            specs.append(entry.spec)
        return specs

    def take_releases(self) -> list[int]:
        """Ids of jobs whose states the worker can free now."""
        releases, self._releases = self._releases, []
        return releases

    def _has_room(self, entry: BoardEntry) -> bool:
        """Whether a worker has: of prompts that vLLM prefills one is compacted at a time."""
        running = [one for one in self.entries.values() if one.running]
        encoded = [one for one in [*running, entry] if not one.spec.native]
        moved = [one.demand.bytes for one in [*running, entry] if one.spec.native]
        if not running:
            return True
        tokens = sum(one.spec.rows for one in encoded)
        held = sum(one.demand.bytes for one in encoded) + max(moved, default=0)
        return (
            len(encoded) <= self.max_jobs
            and (self.max_tokens is None or entry.spec.native or tokens <= self.max_tokens)
            and (self.max_bytes is None or held <= self.max_bytes)
        )

    def _lease(self, entry: BoardEntry, growing: int) -> bool:
        """Take free blocks for a job; whether it has all of them."""
        have = len(entry.blocks)
        if have == entry.demand.blocks:
            return True
        if self.blocks is None:
            return False
        # Once all that run have ended, one of them must find the blocks that it needs beside.
        leased = [one for one in self.entries.values() if one.blocks and one is not entry]
        results = sum(one.demand.kept for one in leased) + entry.demand.kept
        if results + max(one.demand.spare for one in [*leased, entry]) > self.blocks.total:
            return False
        waiting = max((one.demand.spare for one in leased if one.done), default=0)
        spare = max(growing, self.blocks.total // SPARE if leased or growing else 0) + waiting
        wanted = min(entry.demand.blocks, max(0, have + self.blocks.free - spare))
        self._give_back(entry, wanted)
        entry.blocks += self.blocks.take(max(0, wanted - have))
        return wanted == entry.demand.blocks

    def _stop(self, entry: BoardEntry) -> None:
        if entry.sent:
            self._releases.append(entry.spec.id)
        self._give_back(entry, 0)

    def _give_back(self, entry: BoardEntry, keep: int) -> None:
        surplus = entry.blocks[keep:]
        del entry.blocks[keep:]
        if surplus and self.blocks is not None:
            self.blocks.give_back(surplus)
