"""A task, a replica and a pool of replicas that die when told, all without an engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from qm_vllm_eval.ray.work import LOST, REFUSED, TOO_LONG, Answer, Outcome, Unit


def answer(unit: Unit, started: float = 0.0, seconds: float = 1.0) -> Answer:
    report = {"status": "compressed", "source_tokens": 100, "kept_tokens": int(100 * unit.ratio),
              "kv_blocks": 4, "kv_bytes": 4096}
    return Answer([1, 2], f"{unit.row_id} at {unit.ratio}", None, report, started, seconds)


@dataclass
class FakeTask:
    """``rows`` rows at two ratios; the rows in ``bad`` have a reason."""

    rows: int = 4
    bad: tuple[int, ...] = ()
    read: int = 0
    name = "fake"
    metrics = ("score",)
    flags = ()

    def units(self) -> Iterator[Unit]:
        for number in range(self.rows):
            for ratio in (1.0, 0.5):
                self.read += 1
                failure = TOO_LONG if number in self.bad else ""
                reason = "the prompt has 9 tokens; at most 8 are allowed" if failure else ""
                yield Unit(f"row-{number}", ratio, {"prompt_token_ids": [number]},
                           facts={"number": number}, failure=failure, reason=reason)

    def score(self, facts: dict[str, Any], answer: Answer) -> dict[str, Any]:
        return {"score": facts["number"] / 10}

    def settings(self) -> dict[str, Any]:
        return {"task": "fake"}

    def facts(self) -> dict[str, Any]:
        return {"scorer": "a tenth of the number"}


class FakeReplica:
    """Answers in the order of arrival; refuses the keys in ``refused``."""

    started = 0

    def __init__(self, settings: Any = None, name: str = "fake") -> None:
        type(self).started += 1
        self.name = name
        self.held: list[Unit] = []
        self.refused: set[Any] = set()
        self.closed = False

    def add(self, unit: Unit) -> None:
        self.held.append(unit)

    def collect(self) -> list[Outcome]:
        unit = self.held.pop(0)
        if unit.key in self.refused:
            return [Outcome(unit, None, self.name, REFUSED, "vLLM refused the request: no")]
        return [Outcome(unit, answer(unit), self.name)]

    def close(self) -> None:
        self.closed = True


@dataclass
class FakePool:
    """Replicas of room ``in_flight``; one dies, with all it has, when a unit in ``deadly`` is
    its oldest, as often as the number there says."""

    replicas: int
    in_flight: int
    deadly: dict[Any, int] = field(default_factory=dict)
    held: list[list[Unit]] = field(default_factory=list)
    alone: list[bool] = field(default_factory=list)
    most: int = 0
    together: list[set[Any]] = field(default_factory=list)
    turn: int = 0

    def __post_init__(self) -> None:
        self.held = [[] for _ in range(self.replicas)]
        self.alone = [False] * self.replicas

    def offer(self, unit: Unit, alone: bool) -> bool:
        for number, held in enumerate(self.held):
            if not self.alone[number] and len(held) < (1 if alone else self.in_flight):
                held.append(unit)
                self.alone[number] = alone
                self.most = max(self.most, sum(map(len, self.held)))
                return True
        return False

    def wait(self) -> list[Outcome]:
        assert any(self.held), "waits though no replica has anything"
        while True:
            self.turn = (self.turn + 1) % self.replicas
            if self.held[self.turn]:
                break
        held = self.held[self.turn]
        self.together.append({unit.key for unit in held})
        first = held[0]
        self.alone[self.turn] = False
        if self.deadly.get(first.key, 0) > 0:
            self.deadly[first.key] -= 1
            self.held[self.turn] = []
            return [Outcome(u, None, "fake", LOST, "the replica died", lost=True) for u in held]
        held.pop(0)
        return [Outcome(first, answer(first), f"replica-{self.turn}")]

    def close(self) -> None:
        pass
