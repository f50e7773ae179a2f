"""Seeded requests on a CPU whose prompt takes more than one step.

vLLM samples a token after each part of a prompt and takes the draw back by moving the generator's
offset, which a CPU's generator does not have: the engine dies, with the plug-in and without. Here
the generator's state from before the draw is put back instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def mend(runner: Any) -> None:
    """Let a CPU's model runner take draws back; each engine's runner once."""
    sample, book = runner._sample, runner._bookkeeping_sync
    before: dict[int, Any] = {}

    def _sample(*args: Any, **kwargs: Any) -> Any:
        before.clear()
        for place in _discarded(runner):
            before[place] = runner.input_batch.generators[place].get_state()
        return sample(*args, **kwargs)

    def _bookkeeping_sync(*args: Any, **kwargs: Any) -> Any:
        generators = runner.input_batch.generators
        aside = {place: generators.pop(place) for place in _discarded(runner)}
        try:
            return book(*args, **kwargs)
        finally:
            for place, generator in aside.items():
                if place in before:
                    generator.set_state(before[place])
                generators[place] = generator

    runner._sample, runner._bookkeeping_sync = _sample, _bookkeeping_sync


def _discarded(runner: Any) -> list[int]:
    """Places in the batch of seeded requests whose prompt is not complete in this step."""
    batch = runner.input_batch
    if not batch.generators:
        return []
    discarded = np.nonzero(runner.discard_request_mask.np[: batch.num_reqs])[0]
    return [place for place in map(int, discarded) if place in batch.generators]
