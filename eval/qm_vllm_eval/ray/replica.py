"""One vLLM engine that takes units one by one and runs them together."""

from __future__ import annotations

import os
import time
from importlib import import_module
from typing import Any

from qm_vllm import local_engine
from qm_vllm.config import QuickMergeConfig
from qm_vllm.reports import REPORT_KEY
from qm_vllm.request_options import request_args
from qm_vllm_eval.ray.work import REFUSED, Answer, EngineSettings, Outcome, Unit


class Replica:
    """An engine in this process; under Ray the class is an actor's.

    :meth:`add` hands a unit to the scheduler, :meth:`collect` runs the engine until a unit has
    ended. Whoever adds between two collects keeps the engine's batch full.
    """

    def __init__(self, settings: EngineSettings, name: str = "local") -> None:
        """Start the engine.

        Raises:
            UserError: the engine does not start, with vLLM's reason.
        """
        import torch

        os.environ.update(settings.environment())
        torch.set_num_threads(settings.threads)  # torch may have read its environment before
        self.name = name
        self.llm = local_engine.start(
            settings.model, QuickMergeConfig(**settings.config), dtype=settings.dtype,
            **settings.engine_kwargs(),
        )
        self._running: dict[str, tuple[Unit, float, float]] = {}
        self._ended: list[Outcome] = []

    def pid(self) -> int:
        """The process that holds the engine; also a sign that it has started."""
        return os.getpid()

    def add(self, unit: Unit) -> None:
        """Queue a unit. One that vLLM refuses ends at once, with the reason."""
        from vllm import SamplingParams

        try:
            params = SamplingParams(
                **unit.sampling, extra_args=request_args(**unit.options) or None
            )
            (request,) = self.llm.enqueue([dict(unit.prompt)], params, use_tqdm=False)
        except Exception as error:  # a bad request is its own fault, not the replica's
            reason = f"vLLM refused the request: {str(error).strip() or type(error).__name__}"
            self._ended.append(Outcome(unit, None, self.name, REFUSED, reason))
            return
        # The engine adds a random suffix to the id; outputs carry the id without it.
        self._running[request.split("-")[0]] = (unit, time.time(), time.perf_counter())

    def collect(self) -> list[Outcome]:
        """Run until at least one unit has ended, and give all that have; [] if there are none."""
        while not self._ended and self._running:
            for output in self.llm.llm_engine.step():
                if output.finished:
                    self._ended.append(self._outcome(output))
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """End the engine."""
        local_engine.shut_down(self.llm)

    def _outcome(self, output: Any) -> Outcome:
        unit, started, clock = self._running.pop(output.request_id)
        said = output.outputs[0]
        if said.finish_reason in ("error", "abort"):
            reason = "the engine gave the request up; its log has the reason"
            return Outcome(unit, None, self.name, REFUSED, reason)
        answer = Answer(
            token_ids=list(said.token_ids),
            text=said.text,
            logprobs=spoken_logprobs(said),
            report=dict((output.kv_transfer_params or {}).get(REPORT_KEY) or {}),
            started=started,
            seconds=time.perf_counter() - clock,
        )
        return Outcome(unit, answer, self.name)


def replica_class(settings: EngineSettings) -> type[Replica]:
    """The class that ``settings.replica`` names."""
    module, _, name = settings.replica.partition(":")
    found: type[Replica] = getattr(import_module(module), name)
    return found


def spoken_logprobs(completion: Any) -> list[float] | None:
    """Log-probabilities of the tokens said, nats [T]; None if they were not asked for."""
    if completion.logprobs is None:
        return None
    pairs = zip(completion.token_ids, completion.logprobs, strict=True)
    return [float(held[token].logprob) for token, held in pairs]
