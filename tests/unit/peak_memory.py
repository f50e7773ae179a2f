"""The most memory that a call holds on the CPU, as torch's allocator counts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], Any]) -> tuple[int, int]:
    """Bytes above what was held before: the most during the call, and what its result holds.

    Counts what torch's operators allocate inside themselves too.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = call()
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    del result
    return most, held
