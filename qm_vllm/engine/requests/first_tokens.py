"""The first token of an answer comes from the request that prefilled the whole prompt, if it can.

So an answer begins no later than without us, and its first token has seen every token of the
prompt. The requests that get one: the one that the shadow was started for, and those that wait for
the same job, or come later with the same prompt, and would sample the same token.
"""

from __future__ import annotations

from collections.abc import Iterable

from qm_vllm.engine.requests.memo import Outcome
from qm_vllm.engine.requests.native_runs import Run, Shadows
from qm_vllm.engine.requests.tracked import Tracked


def sampled(run: Run, token: int, users: Iterable[Tracked], shadows: Shadows | None) -> None:
    """A shadow sampled a token. Its job's result is still to come.

    Args:
        users: requests that wait for the job.
    """
    assert shadows is not None
    run.first = token if run.shared else None
    for tracked in users:
        if run.gives and tracked.arrival.request_id == run.user:
            _begin(tracked, token, shadows, run.shadow)
        elif run.shared and tracked.arrival.first_shared:
            _begin(tracked, token, shadows)


def begin_known(tracked: Tracked, outcome: Outcome, shadows: Shadows | None) -> None:
    """A request's prompt was compacted before: its first token may be known, too."""
    if outcome.first is not None and shadows is not None and tracked.arrival.first_shared:
        _begin(tracked, outcome.first, shadows)


def _begin(
    tracked: Tracked, token: int, shadows: Shadows, shadow: str | None = None
) -> None:
    handle = tracked.arrival.handle
    if not tracked.begun and not tracked.allocated and handle.may_begin_with(token):
        shadows.begin(handle, token, shadow)
        tracked.begun.append(token)
