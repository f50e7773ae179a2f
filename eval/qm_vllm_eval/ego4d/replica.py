"""An engine that holds a prior and answers queries about clips, one batch of units at a time."""

from __future__ import annotations

import math
import os
import time
from typing import Any

from qm_vllm.prior import PriorConfig
from qm_vllm_eval.ego4d.decode import VllmBins, windows
from qm_vllm_eval.ego4d.reduce import Reduced, reduce
from qm_vllm_eval.ray.work import REFUSED, Answer, EngineSettings, Outcome, Unit


class PriorReplica:
    """See :class:`qm_vllm_eval.ray.replica.Replica`; the prompt of a unit is the clip itself:
    ``{"features": Tensor [N, D], "query": str, "seconds": float, "way": str}``."""

    def __init__(self, settings: EngineSettings, name: str = "local") -> None:
        for key, value in settings.environment().items():
            os.environ.setdefault(key, value)
        self.name = name
        self.config = PriorConfig.from_pretrained(settings.model)
        self.block_size = settings.block_size
        given = settings.engine_kwargs() | {"enable_prefix_caching": True} | dict(settings.extra)
        self.reader = VllmBins.start(settings.model, dtype=settings.dtype, **given)
        self._queued: list[Unit] = []

    def pid(self) -> int:
        """The process that holds the engine; also a sign that it has started."""
        return os.getpid()

    def add(self, unit: Unit) -> None:
        """Queue a unit."""
        self._queued.append(unit)

    def collect(self) -> list[Outcome]:
        """Outcomes of all queued units."""
        units, self._queued = self._queued, []
        return [self._outcome(unit) for unit in units]

    def close(self) -> None:
        """End the engine."""
        from qm_vllm import local_engine

        local_engine.shut_down(self.reader.llm)

    def _outcome(self, unit: Unit) -> Outcome:
        started, clock = time.time(), time.perf_counter()
        prompt = unit.prompt
        try:
            reduced = reduce(
                prompt["features"], unit.ratio, way=prompt["way"],
                times=self.config.time_features, name=unit.row_id,
            )
            (found,) = windows(
                self.reader, self.config, [reduced.states], [prompt["query"]],
                [prompt["seconds"]],
            )
        except Exception as error:  # of this row alone: features that no prior of this shape reads
            return Outcome(unit, None, self.name, REFUSED, f"{type(error).__name__}: {error}")
        report = self._report(reduced) | {"windows": [list(span) for span in found]}
        seconds = time.perf_counter() - clock
        return Outcome(unit, Answer([], "", None, report, started, seconds), self.name)

    def _report(self, reduced: Reduced) -> dict[str, Any]:
        kept = reduced.states.shape[0]
        blocks = math.ceil(kept / self.block_size)
        config = self.config
        token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
        return {
            "status": "compressed" if kept < reduced.num_tokens else "untouched",
            "source_tokens": reduced.num_tokens, "kept_tokens": kept, "kv_blocks": blocks,
            "kv_bytes": blocks * self.block_size * token,
        }
