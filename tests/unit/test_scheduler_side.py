"""The state machine of requests, without vLLM: results, aborts, resets, copies, warnings."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field, replace

import pytest

from qm_vllm import QuickMergeConfig, request_args
from qm_vllm.engine.messages import JobResult, StepMessage, WorkerMessage, WorkerStart
from qm_vllm.engine.requests.scheduler_side import SchedulerSide
from qm_vllm_patches.requests import Arrival
from tests.settings import facts
from tests.unit.test_job_board import Pool

N, BLOCK = 640, 32
IDS = list(range(1000, 1000 + N))


@dataclass
class Handle:
    """A request of the scheduler, as far as the plug-in edits it."""

    ids: list[int]
    salt: str | None = None
    skips_cache: bool = False
    started: bool = False
    beside: int | None = 0

    def resize(self, token_ids, salt) -> None:
        assert not self.started
        self.ids, self.salt = list(token_ids), salt

    restore = resize

    def resalt(self, salt) -> None:
        self.salt = salt

    def elsewhere(self, computed) -> int | None:
        return self.beside


@dataclass(frozen=True)
class ShadowStep:
    """As of ``qm_vllm_patches.scheduler``, which needs vLLM."""

    shadow: str
    start: int
    stop: int
    blocks: tuple[list[int], ...]


@dataclass
class Store(Pool):
    """Blocks, and what the prefix cache was told."""

    total: int = 200
    published: list[tuple[Handle, list[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.total)

    def publish(self, handle, ids, group=0, first=0) -> None:
        self.published.append((handle, list(ids)))

    def on_reset(self, callback) -> None:
        self.clear = callback


class Engine:
    """A scheduler side and what vLLM would do around it."""

    def __init__(self, config: QuickMergeConfig | None = None, **changes) -> None:
        self.side = SchedulerSide(config or QuickMergeConfig(ratio=0.4), facts(**changes))
        self.store = Store()
        self.side.bind_blocks(self.store)
        self.handles: dict[str, Handle] = {}

    def add(self, name: str, ids=IDS, salt=None, skips_cache=False, **options) -> Handle:
        handle = self.handles[name] = Handle(list(ids), salt, skips_cache)
        self.side.arrived(Arrival(
            name, len(ids), list(ids), request_args(**options), salt, generates=True,
            has_embeddings=False, resumable=False, lora=None,
            prompt_logprobs=False, handle=handle,
        ))
        return handle

    def step(self) -> StepMessage:
        return self.side.step_message()

    def tell(self, **results: JobResult) -> None:
        """Results by job id, as ``job1=...``."""
        told = {int(name.removeprefix("job")): result for name, result in results.items()}
        self.side.worker_message(WorkerMessage(told))

    def start(self, name: str, computed: int | None = None) -> int | None:
        """vLLM schedules a request: positions from us beyond what it has; None: not now."""
        handle = self.handles[name]
        computed = (len(handle.ids) - 1) // BLOCK * BLOCK if computed is None else computed
        external = self.side.matched_tokens(name, computed)
        if external is not None:
            blocks = list(range(5000, 5000 + -(-len(handle.ids) // BLOCK)))
            self.side.allocated(name, [blocks], external)
            handle.started = True
        return external


def result(kept: int = 8 * BLOCK + 1, first: int = 0) -> JobResult:
    """The first and the last positions."""
    positions = [*range(first, first + kept - 1), N - 1]
    return JobResult(positions, {"seconds": 0.1, "saliency": "query"})


def test_the_scheduler_side_needs_no_vllm():
    code = (
        "import sys, qm_vllm.engine.requests.scheduler_side\n"
        "print('vllm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_request_waits_is_resized_and_finds_its_blocks():
    engine = Engine()
    handle = engine.add("r")
    assert engine.side.matched_tokens("r", 0) is None
    (job,) = engine.step().jobs
    assert len(job.blocks) == N // BLOCK
    engine.tell(job1=result())
    assert len(handle.ids) == 8 * BLOCK + 1
    assert handle.salt is not None
    (published,) = engine.store.published
    assert published == (handle, list(job.blocks[:8]))
    assert engine.store.free == engine.store.total - 8
    assert engine.start("r") == 0  # all of them through the prefix cache
    assert engine.store.free == engine.store.total - 8
    engine.step()
    assert engine.store.free == engine.store.total
    report = engine.side.finished("r", 9)
    assert report["status"] == "compressed"
    assert report["kept_tokens"] == 8 * BLOCK + 1
    assert "notes" not in report
    assert not engine.side.tracked
    assert not engine.side.board.entries


def test_without_a_prefix_cache_blocks_are_copied_and_kept_until_the_step_has_them():
    engine = Engine(prefix_caching=False)
    engine.add("r")
    (job,) = engine.step().jobs
    engine.tell(job1=result())
    assert engine.start("r", computed=0) == 8 * BLOCK
    assert engine.store.free == engine.store.total - 8
    message = engine.step()
    (copy,) = message.copies
    assert copy.sources == list(job.blocks[:8])
    assert copy.targets == list(range(5000, 5008))
    assert engine.store.free == engine.store.total
    assert engine.step().releases == [1]


def test_the_tail_of_a_whole_prompt_is_copied():
    engine = Engine()
    engine.add("r", IDS[:630], ratio=1.0)
    (job,) = engine.step().jobs
    kept = JobResult(list(range(630)), {"seconds": 0.1})
    engine.tell(job1=kept)
    assert engine.start("r") == 629 % BLOCK
    (copy,) = engine.step().copies
    assert copy.sources == [job.blocks[629 // BLOCK]]
    assert copy.targets == [5000 + 629 // BLOCK]


def test_equal_requests_share_a_job_and_their_blocks():
    engine = Engine()
    handles = [engine.add(name) for name in "abc"]
    assert len(engine.step().jobs) == 1
    engine.tell(job1=result())
    assert len({handle.salt for handle in handles}) == 1
    assert len(engine.store.published) == 1
    for name in "abc":
        assert engine.store.free == engine.store.total - 8
        assert engine.start(name) == 0
    engine.step()
    assert engine.store.free == engine.store.total


def test_requests_that_shall_not_read_the_prefix_cache_share_nothing():
    engine = Engine()
    handles = [engine.add(name, skips_cache=True) for name in "ab"]
    assert len(engine.step().jobs) == 2
    engine.tell(job1=result(), job2=result())
    assert handles[0].salt != handles[1].salt
    assert not any(handle.skips_cache for handle in handles)


def test_a_late_result_of_an_aborted_job_is_not_the_new_ones():
    """Under asynchronous scheduling it comes after the abort, and after an equal request."""
    engine = Engine()
    engine.add("old")
    (old,) = engine.step().jobs
    engine.side.finished("old", 0)
    handle = engine.add("new")
    message = engine.step()
    assert message.releases == [old.id]
    (new,) = message.jobs
    engine.tell(**{f"job{old.id}": result()})
    assert len(handle.ids) == N
    assert engine.side.matched_tokens("new", 0) is None
    engine.tell(**{f"job{new.id}": result(first=5)})
    assert handle.ids[0] == IDS[5]


@pytest.mark.parametrize("stage", ["queued", "running", "done"])
@pytest.mark.parametrize("how", ["pool", "connector"])
def test_a_reset_lets_no_old_result_through(stage, how):
    """As after new weights: whatever was made before is made again."""
    engine = Engine(QuickMergeConfig(ratio=0.4, max_live_jobs=1))
    ahead = engine.add("ahead", IDS[::-1])
    handle = engine.add("r")
    if stage != "queued":
        engine.side.finished("ahead", 0)
    engine.step()
    ((key, entry),) = [(k, e) for k, e in engine.side.board.entries.items() if "r" in e.users]
    old = entry.spec.id
    if stage == "done":
        engine.tell(**{f"job{old}": result()})
        assert len(handle.ids) < N
    (engine.store.clear if how == "pool" else engine.side.reset)()
    assert engine.store.free == engine.store.total, "vLLM clears its cache only then"
    assert handle.ids == IDS
    assert handle.salt is None
    assert engine.side.matched_tokens("r", 0) is None
    if stage == "running":
        engine.tell(**{f"job{old}": result()})
        assert len(handle.ids) == N
    assert ahead.ids == IDS[::-1]
    if stage == "queued":
        engine.side.finished("ahead", 0)
    message = engine.step()
    assert entry is engine.side.board.entries[key]
    (job,) = message.jobs
    assert job.id != old or stage == "queued"
    engine.tell(**{f"job{job.id}": result(first=7)})
    assert handle.ids[0] == IDS[7]
    assert engine.start("r") == 0


def test_a_request_that_came_through_the_memo_is_chosen_for_again_after_a_reset():
    engine = Engine()
    engine.add("first")
    engine.step()
    engine.tell(job1=result())
    engine.start("first")
    engine.step()
    handle = engine.add("again")
    assert len(handle.ids) == 8 * BLOCK + 1
    engine.side.reset()
    assert handle.ids == IDS
    (job,) = engine.step().jobs
    engine.tell(**{f"job{job.id}": result(first=3)})
    assert handle.ids[0] == IDS[3]
    assert not engine.side.finished("again", 9)["cached"]


def test_a_preempted_request_keeps_its_tokens_and_says_if_a_redo_differs():
    engine = Engine()
    handle = engine.add("r")
    engine.step()
    engine.tell(job1=result())
    engine.start("r")
    engine.step()
    handle.started = False  # preempted; its blocks are gone
    kept = list(handle.ids)
    engine.store.clear()
    assert handle.ids == kept
    assert engine.start("r", computed=0) is None
    (job,) = engine.step().jobs
    engine.tell(**{f"job{job.id}": result(first=9)})
    assert engine.start("r", computed=0) == 0
    assert handle.ids == kept
    (note,) = engine.side.finished("r", 9)["notes"]
    assert "other tokens the second time" in note
    engine.step()
    assert engine.store.free == engine.store.total


@pytest.mark.parametrize("error", ["boom", None])
def test_a_failed_job_leaves_the_prompt_as_it_was(error):
    engine = Engine()
    handle = engine.add("r", skips_cache=True)
    engine.step()
    if error is None:
        engine.side.finished("r", 0)
    else:
        engine.tell(job1=JobResult(error=error))
        assert handle.ids == IDS
        assert handle.skips_cache
        assert engine.side.matched_tokens("r", 0) == 0
        assert error in engine.side.finished("r", 20)["reason"]
    engine.step()
    assert engine.store.free == engine.store.total


def test_details_are_in_the_report_and_nowhere_else():
    engine = Engine()
    found = result()
    engine.add("r", details=True)
    engine.step()
    engine.tell(job1=JobResult(found.kept, found.figures, {"scores": [1.0]}))
    engine.start("r")
    assert engine.side.finished("r", 9)["details"] == {"scores": [1.0]}
    engine.add("again", details=True)  # not remembered, so they are computed again
    assert len(engine.step().jobs) == 1


@pytest.mark.parametrize(("options", "crowded"), [
    ({"protect_ranges": [[0, 300]]}, True), ({"protect_last": 20}, False), ({"ratio": 1.0}, False),
])
def test_protected_positions_that_leave_nothing_are_in_the_report(options, crowded):
    engine = Engine()
    engine.add("r", **options)
    (job,) = engine.step().jobs
    engine.tell(**{f"job{job.id}": result(353 if crowded else 225)})
    engine.start("r")
    notes = engine.side.finished("r", 9).get("notes", [])
    said = "332 positions are protected and the budget is 256, so 21 of the rest stayed"
    assert any(said in note for note in notes) is crowded


def test_a_prompt_whose_job_does_not_fit_passes_untouched_and_says_why():
    engine = Engine()
    engine.side.workers_started([WorkerStart(500_000, None), WorkerStart(400_000, None)])
    engine.add("r")
    reason = engine.side.finished("r", 20)["reason"]
    assert "a job of 640 prompt tokens needs" in reason
    assert "0.4 MiB are set aside" in reason
    engine.side.workers_started([WorkerStart(1 << 30, None)])
    engine.side.facts = replace(engine.side.facts, max_model_len=8192)
    engine.add("many", list(range(7000)))
    assert "KV blocks" in engine.side.finished("many", 20)["reason"]


@pytest.mark.parametrize("options", [
    {"encoder_layers": 999}, {"window_layers": 999}, {"score_layers": [4, 90]},
])
def test_impossible_layers_are_invalid_options(options):
    engine = Engine()
    engine.add("r", **options)
    assert "invalid option" in engine.side.finished("r", 20)["reason"]
