"""Units to replicas: back-pressure and retries; and the pool of one engine in this process.

Nothing here knows Ray: :mod:`qm_vllm_eval.ray.actors` is the pool of actors.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from qm_vllm_eval.ray.replica import Replica
from qm_vllm_eval.ray.work import Key, Outcome, Unit

MOST_TRIES = 3
"""How often a unit may be with a replica that dies."""


class Pool(Protocol):
    """Replicas that take units."""

    def offer(self, unit: Unit, alone: bool) -> bool:
        """Give the unit to a replica with room; False if there is none now.

        Args:
            alone: only to a replica that has nothing else, and gets nothing else meanwhile.
        """

    def wait(self) -> list[Outcome]:
        """Block until a unit that was taken has ended or was lost with its replica."""

    def close(self) -> None:
        """End the replicas."""


def drive(units: Iterable[Unit], pool: Pool, tries: int = MOST_TRIES) -> Iterator[Outcome]:
    """Run the units; give each outcome once, as it comes.

    Units are taken from the iterable only when a replica has room. A unit whose replica died
    runs again, by itself, so that the units beside it are not lost with it once more.

    Args:
        tries: after so many lost replicas the unit fails with the reason.
    """
    source = iter(units)
    lost: deque[Unit] = deque()
    given: dict[Key, int] = {}
    waiting: Unit | None = None
    while True:
        while lost and pool.offer(lost[0], alone=True):
            unit = lost.popleft()
            given[unit.key] += 1
        while not lost:  # replicas run empty until every lost unit has a place
            waiting = waiting or next(source, None)
            if waiting is None:
                break
            if waiting.failure:
                unit, waiting = waiting, None
                yield Outcome(unit, failure=unit.failure, reason=unit.reason, tries=0)
            elif pool.offer(waiting, alone=False):
                given[waiting.key] = 1
                waiting = None
            else:
                break
        if not given:
            return
        for outcome in pool.wait():
            key = outcome.unit.key
            outcome = dataclasses.replace(outcome, tries=given[key])
            if outcome.lost and outcome.tries < tries:
                lost.append(outcome.unit)
                continue
            del given[key]
            yield outcome


class LocalPool:
    """One engine in this process: the run without Ray."""

    def __init__(self, replica: Replica, in_flight: int) -> None:
        """``in_flight``: most units that the engine has at once."""
        self.replica = replica
        self.in_flight = in_flight
        self.held = 0

    def offer(self, unit: Unit, alone: bool) -> bool:
        """See :class:`Pool`."""
        if self.held >= (1 if alone else self.in_flight):
            return False
        self.replica.add(unit)
        self.held += 1
        return True

    def wait(self) -> list[Outcome]:
        """See :class:`Pool`."""
        ended = self.replica.collect()
        self.held -= len(ended)
        return ended

    def close(self) -> None:
        """See :class:`Pool`."""
        self.replica.close()
