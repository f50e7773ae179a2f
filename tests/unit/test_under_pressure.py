"""Requests and jobs in a pool that is too small for them, as vLLM's scheduler would serve them.

A model of it: first come first served, a request that finds too few blocks holds up those behind
it, the youngest is preempted when one that runs finds none, freed blocks stay in the prefix cache
until they are used again. Every block knows what was written into it last.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from qm_vllm import QuickMergeConfig, request_args
from qm_vllm.compress import round_to_blocks
from qm_vllm.engine.messages import JobResult, JobSpec, StepMessage, WorkerMessage
from qm_vllm.engine.requests.scheduler_side import SchedulerSide
from qm_vllm_patches.requests import Arrival
from tests.settings import facts
from tests.unit.test_scheduler_side import Handle, ShadowStep

SIZE = 32


@dataclass(eq=False)
class Asked(Handle):
    """A request on its way through the model scheduler."""

    name: str = ""
    wanted: int = 1
    blocks: list[int] = field(default_factory=list)
    written: int = 0
    shadow: bool = False
    chunk: int = 0
    reached: int = 0

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def tokens(self) -> int:
        return len(self.ids) + self.written

    def may_begin_with(self, token: int) -> bool:
        return not self.started

    def begin_with(self, token: int) -> None:
        assert not self.started
        self.ids.append(token)
        self.wanted -= 1


class Blocks:
    """Free blocks in the order in which they are taken; what each holds; what is cached where."""

    def __init__(self, total: int, caching: bool) -> None:
        self.total, self.caching = total, caching
        self.queue = list(range(1, total + 1))
        self.users: dict[int, int] = {}
        self.holds: dict[int, object] = {}
        self.cached: dict[tuple[str, int], int] = {}

    @property
    def free(self) -> int:
        return len(self.queue)

    def take(self, count: int) -> list[int]:
        assert count <= self.free
        taken, self.queue = self.queue[:count], self.queue[count:]
        gone = set(taken)
        self.cached = {k: block for k, block in self.cached.items() if block not in gone}
        self.users.update(dict.fromkeys(taken, 1))
        return taken

    def touch(self, blocks: list[int]) -> None:
        for block in blocks:
            if not self.users.get(block):
                self.queue.remove(block)
            self.users[block] = self.users.get(block, 0) + 1

    def give_back(self, blocks) -> None:
        for block in reversed(list(blocks)):
            self.users[block] -= 1
            assert self.users[block] >= 0
            if not self.users[block]:
                known = block in self.cached.values()
                self.queue.insert(len(self.queue) if known else 0, block)

    def publish(self, handle: Asked, ids: list[int], group: int = 0, first: int = 0) -> None:
        if self.caching:
            self.cached |= {(handle.salt, i): block for i, block in enumerate(ids)}

    def on_reset(self, callback) -> None:
        self.clear = callback

    def hits(self, request: Asked) -> list[int]:
        found: list[int] = []
        while (request.salt, len(found)) in self.cached:
            found.append(self.cached[request.salt, len(found)])
        return found[: (request.tokens - 1) // SIZE]


class Scheduler:
    """The model; ``served`` are the names of requests that have ended."""

    def __init__(self, total: int, caching: bool, seed: int) -> None:
        self.blocks, self.random = Blocks(total, caching), random.Random(seed)
        config = QuickMergeConfig(ratio=0.4, max_live_jobs=self.random.choice([1, 2, 4]))
        self.side = SchedulerSide(config, facts(prefix_caching=caching, block_size=SIZE))
        self.side.bind_blocks(self.blocks)
        self.side.bind_shadows(self)
        self.waiting: list[Asked] = []
        self.running: list[Asked] = []
        self.jobs: dict[int, tuple[JobSpec, int]] = {}
        self.served: dict[str, dict] = {}
        self.redone = 0
        self.due: set[int] = set()

    def add(self, name: str, length: int, wanted: int, **options) -> None:
        ids = [self.random.randrange(1000) for _ in range(length)]
        request = Asked(ids, name=name, wanted=wanted)
        self.side.arrived(Arrival(
            name, length, list(ids), request_args(**options), None, generates=True,
            has_embeddings=False, resumable=False, lora=None,
            prompt_logprobs=False, handle=request, first=wanted > 1,
            first_shared=wanted > 1 and self.random.random() < 0.7,
        ))
        self.waiting.append(request)

    def start(self, handle, shadow: str, token_ids, salt, last: int, first: bool) -> None:
        chunk = self.random.choice([len(token_ids), 300])
        self.waiting.append(
            Asked(list(token_ids), salt=salt, name=shadow, shadow=True, chunk=chunk)
        )

    def begin(self, handle, token: int, shadow: str | None = None) -> None:
        handle.begin_with(token)

    def stop(self, shadow: str) -> None:
        for queue in (self.waiting, self.running):
            for request in [one for one in queue if one.name == shadow]:
                queue[:] = [one for one in queue if one is not request]
                self.blocks.give_back(request.blocks)

    def step(self, *, late: bool) -> None:
        self.side.before_step()
        grown = self._grow()
        begun = self._admit()
        steps = [
            ShadowStep(one.name, one.reached, min(one.reached + one.chunk, len(one.ids)),
                       (one.blocks,))
            for one in self.running if one.shadow and one.reached < len(one.ids)
        ]
        message = self.side.step_message(grown + begun, steps, {})
        for step in steps:
            self._named(step.shadow).reached = step.stop
        self._work(message, late=late)
        for request in [one for one in self.running if not one.shadow]:
            self._check(request)
            request.written += 1
            if request.written >= request.wanted:
                self.running.remove(request)
                self.blocks.give_back(request.blocks)
                report = self.side.finished(request.name, len(request.blocks))
                self.served[request.name] = report

    def _named(self, name: str) -> Asked:
        return next(one for one in self.running if one.name == name)

    def _grow(self) -> int:
        for request in [one for one in self.running if not one.shadow]:
            while request in self.running and -(-(request.tokens + 1) // SIZE) > len(
                request.blocks
            ):
                if self.blocks.free:
                    request.blocks += self.blocks.take(1)
                    self.blocks.holds[request.blocks[-1]] = request.name
                else:
                    self._preempt(self.running.pop())
        return len(self.running)

    def _preempt(self, request: Asked) -> None:
        self.blocks.give_back(request.blocks)
        request.blocks, request.started, request.reached = [], False, 0
        self.waiting.insert(0, request)

    def _admit(self) -> int:
        begun = 0
        for request in list(self.waiting):
            hits = [] if request.shadow else self.blocks.hits(request)
            external = 0
            if not request.shadow:
                external = self.side.matched_tokens(request.name, len(hits) * SIZE)
            if external is None:
                continue
            needed = -(-(request.tokens + 1) // SIZE) - len(hits)
            idle = sum(not self.blocks.users.get(block) for block in hits)
            if needed > self.blocks.free - idle:
                break
            self.blocks.touch(hits)
            request.blocks = hits + self.blocks.take(needed)
            if not request.shadow:
                self.side.allocated(request.name, [request.blocks], external)
            for block in request.blocks[len(hits):]:
                self.blocks.holds[block] = request.name
            request.started = True
            self.waiting.remove(request)
            self.running.append(request)
            begun += 1
        return begun

    def _work(self, message: StepMessage, *, late: bool) -> None:
        for copy in message.copies:
            for source, target in zip(copy.sources, copy.targets, strict=True):
                self.blocks.holds[target] = self.blocks.holds[source]
        for job in message.releases:
            self.jobs.pop(job, None)
        for spec in message.jobs:
            self.jobs[spec.id] = (spec, self.random.randrange(1, 6))
        results = {}
        # Whole prompts are compacted when the next step begins.
        last, self.due = self.due, {one.job for one in message.progress if one.blocks}
        for job, (spec, left) in list(self.jobs.items()):
            for block in spec.blocks:
                self.blocks.holds[block] = ("busy", spec.key)
            if spec.native and job not in last:
                continue
            if left and not spec.native:
                self.jobs[job] = (spec, left - 1)
                continue
            tokens = len(spec.token_ids)
            k = round_to_blocks(round((spec.config.ratio or 0.4) * tokens), tokens, 36, SIZE)
            if spec.native:
                k = min(spec.group_blocks[0] * SIZE + 1, tokens)
            for block in spec.blocks[: -(-(k - 1) // SIZE)]:
                self.blocks.holds[block] = ("result", spec.key)
            results[job] = JobResult([*range(k - 1), tokens - 1], {"seconds": 0.1})
            del self.jobs[job]
        told = WorkerMessage(results)
        if late and self.random.random() < 0.5:  # as under asynchronous scheduling
            self.late, told = told, getattr(self, "late", WorkerMessage())
        ended = [one.name for one in self.running if one.shadow and one.reached == len(one.ids)]
        for shadow in ended:
            self.stop(shadow)
            self.side.shadow_ended(shadow)
        self.side.worker_message(told)
        for shadow in ended:
            self.side.first_token(shadow, 7)

    def _check(self, request: Asked) -> None:
        """The blocks of its prompt hold its own job's result, or what vLLM wrote itself."""
        tracked = self.side.tracked[request.name]
        if tracked.outcome is None or tracked.notes or tracked.prefills:
            return
        for block in request.blocks[: (len(tracked.outcome.kept) - 1) // SIZE]:
            assert self.blocks.holds[block] == ("result", tracked.plan.spec.key), request.name


@pytest.mark.parametrize(
    "deliveries", [("inject",), ("native",), ("inject", "native", "prefill")], ids="+".join
)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_everything_is_served_and_nothing_is_left(seed, caching, late, deliveries):
    pick = random.Random(seed)
    total = pick.randrange(45, 90)
    engine = Scheduler(total, caching, seed)
    count, steps = pick.randrange(4, 16), 0
    for number in range(count):
        kind = pick.choice(["ours", "ours", "plain", "whole", "short"])
        length = pick.randrange(10, 250) if kind == "short" else pick.randrange(300, 1200)
        options = {"plain": {"enabled": False}, "whole": {"ratio": 1.0}}.get(kind, {})
        options |= {"delivery": pick.choice(deliveries)}
        engine.add(f"{kind} {number}", length, pick.randrange(1, 120), **options)
        for _ in range(pick.randrange(0, 4)):
            engine.step(late=late)
        users = [one for one in engine.waiting if not one.shadow]
        if users and pick.random() < 0.15:  # a client hangs up
            gone = pick.choice(users)
            engine.waiting.remove(gone)
            engine.served[gone.name] = engine.side.finished(gone.name, 0)
        if pick.random() < 0.1:
            for request in list(engine.running):
                engine.running.remove(request)
                engine._preempt(request)
            engine.blocks.clear()
            engine.blocks.cached.clear()
    while len(engine.served) < count:
        engine.step(late=late)
        steps += 1
        held = [one for one in engine.side.tracked.values() if one.allocated]
        assert engine.side.growing == len(held)
        assert steps < 5000, (engine.waiting, engine.running, engine.side.board.entries)
    for _ in range(3):
        engine.step(late=False)
    assert not engine.side.tracked
    assert not engine.side.growing
    assert not engine.side.board.entries
    assert not engine.jobs
    assert engine.blocks.free == total
