"""Results of past jobs by content key, so that a repeated prompt is resized on arrival."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

from qm_vllm.engine.messages import JobResult

ENTRY_BYTES = 2048
"""What an entry takes beside its kept positions: key, figures, the dictionary's own."""


@dataclass(frozen=True)
class Outcome:
    """The lasting part of a job's result.

    Attributes:
        kept: source positions. figures: for the report.
        first: the first token of every answer that is sampled greedily over the whole prompt,
            where one was.
    """

    kept: array[int]
    figures: dict[str, Any]
    first: int | None = None

    @classmethod
    def of(cls, result: JobResult, first: int | None = None) -> Outcome:
        """Of a successful result."""
        return cls(array("I", result.kept), result.figures, first)

    @property
    def bytes(self) -> int:
        """An upper estimate of the memory it takes in a memo."""
        return ENTRY_BYTES + len(self.kept) * self.kept.itemsize


class Memo:
    """Least recently used cache of outcomes.

    Args:
        capacity: bytes of all entries together.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.bytes = capacity, 0
        self._entries: OrderedDict[str, Outcome] = OrderedDict()

    def get(self, key: str) -> Outcome | None:
        """The outcome of an equal job, or None."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: str, outcome: Outcome) -> None:
        """Remember an outcome; the least recently used ones make room."""
        self.forget(key)
        self._entries[key] = outcome
        self.bytes += outcome.bytes
        while self.bytes > self.capacity:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= oldest.bytes

    def forget(self, key: str) -> None:
        """Drop one outcome, if it is there."""
        known = self._entries.pop(key, None)
        if known is not None:
            self.bytes -= known.bytes

    def forget_answers(self) -> None:
        """Other weights may answer: what they kept stays, no first token does."""
        for key, outcome in self._entries.items():
            if outcome.first is not None:
                self._entries[key] = replace(outcome, first=None)

    def clear(self) -> None:
        """Forget everything (the prefix cache was reset)."""
        self._entries.clear()
        self.bytes = 0
