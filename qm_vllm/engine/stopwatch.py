"""Seconds per phase of a job; CUDA work is timed with events, so nothing is synchronised."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Adds up named phases; read :meth:`seconds` once, at the end."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.spans: list[tuple[str, Any, Any]] = []

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time spent inside towards ``name``."""
        begin = self._now()
        try:
            yield
        finally:
            self.spans.append((name, begin, self._now()))

    def timed(self, name: str, units: Iterator[int]) -> Iterator[int]:
        """The same units, each counted towards ``name``."""
        while True:
            with self.phase(name):
                cost = next(units, None)
            if cost is None:
                return
            yield cost

    def seconds(self) -> dict[str, float]:
        """Seconds by phase. On CUDA this waits for the last event."""
        totals: dict[str, float] = {}
        if self.cuda and self.spans:
            self.spans[-1][2].synchronize()
        for name, begin, end in self.spans:
            spent = begin.elapsed_time(end) / 1e3 if self.cuda else end - begin
            totals[name] = totals.get(name, 0.0) + spent
        return totals
