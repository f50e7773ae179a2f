"""One INFO line a minute about what the plug-in did; none while nothing happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from qm_vllm.engine.requests.tally import added, figures
from qm_vllm_patches.log import get_logger

logger = get_logger(__name__)


class MinuteLine:
    """Adds up what is observed and logs it.

    Args:
        clock: seconds that only grow.
    """

    SECONDS = 60.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.since = clock, clock()
        self.seen: dict[str, Any] | None = None

    def observe(self, counts: dict[str, Any] | None) -> None:
        """Take one step's counts (None: nothing), and log if a minute has passed."""
        if counts is not None:
            self.seen = counts if self.seen is None else added(self.seen, counts)
        now = self.clock()
        if now - self.since < self.SECONDS or self.seen is None:
            return
        line = ", ".join(f"{name} {value:,}" for name, value in figures(self.seen).items())
        levels = ", ".join(
            f"{name.replace('_', ' ')} {value}"
            for name, value in self.seen.get("gauges", {}).items()
        )
        reasons = self.seen.get("fallbacks", {})
        why = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        logger.info(
            "qm_vllm: last %.0f s: %s%s%s", now - self.since, line,
            f"; untouched because: {why}" if why else "", f"; now {levels}" if levels else "",
        )
        self.since, self.seen = now, None
