"""What the plug-in counts in the scheduler's process, step by step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """Counts since the last :meth:`take`; plain numbers, so that they travel between processes."""

    counts: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    gauges: dict[str, int] = field(default_factory=dict)

    def untouched(self, kind: str) -> None:
        """A request went to plain vLLM, for a reason of this kind."""
        self.fallbacks[kind] += 1

    def compressed(self, source: int, kept: int, block_size: int, groups: int = 1) -> None:
        """A request was resized from ``source`` to ``kept`` tokens, in the mean of its layers.

        Args:
            groups: of layers that see all positions, with block tables of their own.
        """
        self.counts["compressed"] += 1
        self.counts["source_tokens"] += source
        self.counts["kept_tokens"] += kept
        saved = -(-source // block_size) - -(-kept // block_size)
        self.counts["blocks_saved"] += saved * groups

    def job(self, seconds: float | None) -> None:
        """A job ended: its worker seconds, or None if it failed."""
        self.counts["jobs" if seconds is not None else "jobs_failed"] += 1
        if seconds is not None:
            self.seconds.append(seconds)

    def level(self, **gauges: int) -> None:
        """Set gauges; a change alone is worth reporting."""
        self.gauges |= gauges

    def take(self) -> dict[str, Any] | None:
        """What was counted since the last call, or None if nothing was."""
        data: dict[str, Any] = {
            "counts": dict(self.counts), "fallbacks": dict(self.fallbacks),
            "seconds": list(self.seconds), "gauges": dict(self.gauges),
        }
        self.counts.clear()
        self.fallbacks.clear()
        self.seconds.clear()
        self.gauges.clear()
        return data if any(data.values()) else None


def added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two takes added up; of gauges the later one counts."""
    total: dict[str, Any] = {
        name: dict(Counter(one.get(name, {})) + Counter(other.get(name, {})))
        for name in ("counts", "fallbacks")
    }
    total["seconds"] = [*one.get("seconds", ()), *other.get("seconds", ())]
    total["gauges"] = one.get("gauges", {}) | other.get("gauges", {})
    return total


def figures(data: dict[str, Any]) -> dict[str, int | float]:
    """The figures of a log line."""
    counts, seconds = Counter(data.get("counts", {})), data.get("seconds", [])
    line: dict[str, int | float] = {
        "compressed requests": counts["compressed"],
        "untouched requests": sum(data.get("fallbacks", {}).values()),
        "source tokens": counts["source_tokens"],
        "kept tokens": counts["kept_tokens"],
        "blocks saved": counts["blocks_saved"],
        "memo hits": counts["memo_hits"],
    }
    if seconds:
        line["mean job seconds"] = round(sum(seconds) / len(seconds), 3)
    return line
