"""Replicas as Ray actors: one GPU each, or a placement group if a replica spans several."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from qm_vllm.errors import UserError
from qm_vllm_eval.ray.replica import replica_class
from qm_vllm_eval.ray.work import LOST, EngineSettings, Outcome, Unit

START_SECONDS = 900.0
MOST_RESTARTS = 20
"""Of all replicas of a run together: beyond, something is wrong with all of them."""


@dataclass
class _Slot:
    """One replica: its actor, the units that it has, and the collect it is asked for."""

    name: str
    actor: Any
    held: dict[tuple[str, float], Unit] = field(default_factory=dict)
    asked: Any = None
    alone: bool = False
    group: Any = None


class ActorPool:
    """Actors that each hold an engine. See :class:`qm_vllm_eval.ray.pool.Pool`.

    Args:
        settings: of every engine. replicas: how many.
        in_flight: most units that one replica has, running and queued.
        gpus: give each replica ``settings.tensor_parallel`` GPUs; else as many CPUs.
    """

    def __init__(
        self, settings: EngineSettings, replicas: int, in_flight: int, *, gpus: bool
    ) -> None:
        self.settings = settings
        self.in_flight = in_flight
        self.gpus = gpus
        self.restarts = 0
        self.slots = [_Slot(f"replica-{i}", None) for i in range(replicas)]
        for slot in self.slots:
            self._start(slot)

    def ready(self) -> list[int]:
        """Wait until every engine has started; the processes that hold them.

        Raises:
            UserError: one does not start, with its reason.
        """
        try:
            asked = [slot.actor.pid.remote() for slot in self.slots]
            return list(ray.get(asked, timeout=START_SECONDS))
        except RayError as error:
            self.close()
            raise UserError(f"a replica did not start: {_cause(error)}") from error

    def offer(self, unit: Unit, alone: bool) -> bool:
        """See :class:`qm_vllm_eval.ray.pool.Pool`."""
        slot = min(self.slots, key=lambda slot: (slot.alone, len(slot.held)))
        if slot.alone or len(slot.held) >= (1 if alone else self.in_flight):
            return False
        slot.held[unit.key] = unit
        slot.alone = alone
        slot.actor.add.remote(unit)
        return True

    def wait(self) -> list[Outcome]:
        """See :class:`qm_vllm_eval.ray.pool.Pool`.

        Raises:
            UserError: replicas die again and again.
        """
        busy = [slot for slot in self.slots if slot.held]
        for slot in busy:
            if slot.asked is None:
                slot.asked = slot.actor.collect.remote()
        ready, _ = ray.wait([slot.asked for slot in busy], num_returns=1)
        outcomes: list[Outcome] = []
        for slot in busy:
            if slot.asked in ready:
                outcomes += self._collected(slot)
        return outcomes

    def close(self) -> None:
        """See :class:`qm_vllm_eval.ray.pool.Pool`."""
        for slot in self.slots:
            self._stop(slot)

    def _collected(self, slot: _Slot) -> list[Outcome]:
        asked, slot.asked = slot.asked, None
        try:
            ended: list[Outcome] = ray.get(asked)
        except RayError as error:
            return self._lost(slot, error)
        for outcome in ended:
            slot.held.pop(outcome.unit.key, None)
        slot.alone = slot.alone and bool(slot.held)
        return ended

    def _lost(self, slot: _Slot, error: RayError) -> list[Outcome]:
        """The units of a dead replica (or one whose engine broke), and a new one in its place."""
        self.restarts += 1
        if self.restarts > MOST_RESTARTS:
            self.close()
            raise UserError(f"replicas died {self.restarts} times, the last: {_cause(error)}")
        units, slot.held, slot.alone = list(slot.held.values()), {}, False
        self._stop(slot)
        self._start(slot)
        reason = f"the replica that had the row died: {_cause(error)}"
        return [Outcome(unit, None, slot.name, LOST, reason, lost=True) for unit in units]

    def _start(self, slot: _Slot) -> None:
        width = self.settings.tensor_parallel
        options: dict[str, Any] = {
            "num_cpus": 1 if self.gpus else width,
            "num_gpus": width if self.gpus else 0,
            "max_restarts": 0,  # the units of a dead actor are known here, so is its successor
            "runtime_env": {"env_vars": self.settings.environment()},
        }
        if width > 1:  # all ranks of an engine on one node
            bundle = {"CPU": float(options["num_cpus"])}
            if self.gpus:
                bundle["GPU"] = float(width)
            slot.group = placement_group([bundle], strategy="STRICT_PACK")
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                slot.group, placement_group_capture_child_tasks=True
            )
        kind = ray.remote(replica_class(self.settings)).options(**options)
        slot.actor = kind.remote(self.settings, slot.name)

    def _stop(self, slot: _Slot) -> None:
        ray.kill(slot.actor)
        if slot.group is not None:
            remove_placement_group(slot.group)
            slot.group = None


def _cause(error: BaseException) -> str:
    """The first line that says what happened."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {str(error.cause).strip().splitlines()[0]}"
    if isinstance(error, RayActorError):
        return next((line.strip() for line in str(error).splitlines()[1:] if line.strip()),
                    "the actor died")
    return (str(error).strip() or type(error).__name__).splitlines()[0]
