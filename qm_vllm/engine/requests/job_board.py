"""Which jobs wait, which live in the worker, and which requests still need each of them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from qm_vllm.engine.messages import JobSpec


@dataclass
class BoardEntry:
    """A job and the requests that wait for its result or its artefact."""

    spec: JobSpec
    users: set[str] = field(default_factory=set)
    sent: bool = False
    done: bool = False


class JobBoard:
    """Admits jobs to the worker, first come, first served; one job serves all equal requests.

    Args:
        max_live: jobs whose states or KV the worker may hold.
        max_tokens: source tokens of all jobs that run; a longer one runs alone.
    """

    def __init__(self, max_live: int, max_tokens: int) -> None:
        self.max_live, self.max_tokens = max_live, max_tokens
        self.entries: dict[str, BoardEntry] = {}
        self.queue: deque[str] = deque()
        self.releases: list[str] = []
        self._levels = (0, 0)

    def live(self) -> int:
        """Jobs whose states or KV the worker holds."""
        return sum(entry.sent for entry in self.entries.values())

    def changed(self) -> bool:
        """Whether the numbers of waiting and live jobs differ from the last call's."""
        before, self._levels = self._levels, (len(self.queue), self.live())
        return before != self._levels

    def join(self, spec: JobSpec, request_id: str, *, urgent: bool = False) -> BoardEntry:
        """Make a request a user of the job, which is queued if it is new."""
        entry = self.entries.get(spec.key)
        if entry is None:
            entry = self.entries[spec.key] = BoardEntry(spec)
            (self.queue.appendleft if urgent else self.queue.append)(spec.key)
        entry.users.add(request_id)
        return entry

    def leave(self, key: str, request_id: str) -> None:
        """A request was served, failed or ended; a job without users is dropped."""
        entry = self.entries.get(key)
        if entry is None:
            return
        entry.users.discard(request_id)
        if not entry.users:
            self.drop(key)

    def drop(self, key: str) -> None:
        """Forget a job and let the worker free what it holds."""
        entry = self.entries.pop(key)
        if entry.sent:
            self.releases.append(key)
        else:
            self.queue.remove(key)

    def take_new(self) -> list[JobSpec]:
        """Jobs to send to the worker now."""
        if not self.queue:
            return []
        live = self.live()
        specs: list[JobSpec] = []
        running = [e.spec for e in self.entries.values() if e.sent and not e.done]
        tokens = sum(len(spec.token_ids) for spec in running)
        while self.queue and live < self.max_live:
            entry = self.entries[self.queue[0]]
            tokens += len(entry.spec.token_ids)
            if tokens > self.max_tokens and (running or specs):
                break
            self.queue.popleft()
            entry.sent, live = True, live + 1
            specs.append(entry.spec)
        return specs

    def take_releases(self) -> list[str]:
        """Keys whose states the worker can free now."""
        releases, self.releases = self.releases, []
        return releases
