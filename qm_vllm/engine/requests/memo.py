"""Results of past jobs by content key, so that a repeated prompt is resized on arrival."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from qm_vllm.engine.messages import JobResult


@dataclass(frozen=True)
class Outcome:
    """The lasting part of a job's result: kept source positions and figures."""

    kept: array[int]
    figures: dict[str, Any]
    details: dict[str, Any] | None


class Memo:
    """Least recently used cache of at most ``capacity`` outcomes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[str, Outcome] = OrderedDict()

    def get(self, key: str) -> Outcome | None:
        """The outcome of an equal job, or None."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, result: JobResult) -> Outcome:
        """Remember a successful result."""
        outcome = Outcome(array("l", result.kept), result.figures, result.details)
        self._entries[result.key] = outcome
        self._entries.move_to_end(result.key)
        while len(self._entries) > self.capacity:
            self._entries.popitem(last=False)
        return outcome

    def clear(self) -> None:
        """Forget everything (the prefix cache was reset)."""
        self._entries.clear()
