"""The job board: sharing, admission by tokens, bytes and blocks, release; the memo."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.messages import JobResult, JobSpec, WorkerMessage
from qm_vllm.engine.requests.job_board import Demand, JobBoard
from qm_vllm.engine.requests.memo import ENTRY_BYTES, Memo, Outcome

SIZE = 32


class Pool:
    """Blocks 1, 2, ... of an engine."""

    def __init__(self, total: int) -> None:
        self.total, self.ids = total, list(range(1, total + 1))

    @property
    def free(self) -> int:
        return len(self.ids)

    def take(self, count: int) -> list[int]:
        taken, self.ids = self.ids[:count], self.ids[count:]
        assert len(taken) == count
        return taken

    def give_back(self, ids) -> None:
        assert not set(ids) & set(self.ids)
        self.ids += ids


def spec(key: str, tokens: int = 3, block_size: int | None = None) -> JobSpec:
    return JobSpec(0, key, [1] * tokens, QuickMergeConfig(), 4, (1, 2), [], block_size)


def demand(blocks: int = 0, kept: int = 0, spare: int = 1, size: int = 0) -> Demand:
    return Demand(size, blocks, kept, spare)


def join(board: JobBoard, key: str, tokens: int = 3, **needs: int):
    return board.join(spec(key, tokens, SIZE), demand(**needs), "r" + key)


def keys(specs: list[JobSpec]) -> list[str]:
    return [one.key for one in specs]


def test_equal_requests_share_a_job_until_the_last_leaves():
    board = JobBoard(4, 10_000)
    assert board.join(spec("a"), demand(), "r1") is board.join(spec("a"), demand(), "r2")
    (sent,) = board.take_new()
    assert sent.key == "a"
    board.leave("a", "r1")
    assert board.take_releases() == []
    assert "a" in board.entries
    board.leave("a", "r2")
    assert board.take_releases() == [sent.id]
    assert not board.entries


def test_admission_is_bounded_and_in_order_and_who_waited_before_goes_first():
    board = JobBoard(2, 10_000)
    for name in "abc":
        board.join(spec(name), demand(), "r" + name)
    board.join(spec("z"), demand(), "rz", again=True)
    assert keys(board.take_new()) == ["z", "a"]
    assert board.take_new() == []
    board.leave("z", "rz")
    assert keys(board.take_new()) == ["b"]


def test_the_queue_is_by_priority_and_then_by_arrival():
    board = JobBoard(1)
    for name, priority in (("a", 5), ("b", 5), ("c", 0), ("d", 9), ("e", 0)):
        board.join(spec(name), demand(), "r" + name, priority=priority)
    board.join(spec("z"), demand(), "rz", priority=5, again=True)
    began = []
    while specs := board.take_new():
        began += keys(specs)
        board.leave(specs[0].key, "r" + specs[0].key)
    assert began == list("cezabd")


def test_an_urgent_job_is_begun_before_ten_that_wait_and_ends_none_that_runs():
    board, pool = JobBoard(2), Pool(100)
    board.blocks = pool
    for number in range(10):
        board.join(spec(f"k{number}", 40 * SIZE, SIZE), demand(40, 10), f"r{number}", priority=5)
    running = board.take_new()
    assert keys(running) == ["k0", "k1"]
    board.join(spec("short", SIZE, SIZE), demand(1, 1), "short", priority=-1)
    board.join(spec("long", 78 * SIZE, SIZE), demand(78, 10), "long", priority=-1)
    assert board.take_new() == []
    assert {one.id for one in running} == board.running()
    board.finish(running[0].id, 10 * SIZE + 1)
    assert keys(board.take_new()) == ["short"]
    board.finish(running[1].id, 10 * SIZE + 1)  # the long one collects blocks, nobody overtakes it
    assert board.take_new() == []
    board.leave("k0", "r0")
    board.leave("k1", "r1")
    assert keys(board.take_new()) == ["long"]


def test_a_job_that_waits_is_as_urgent_as_its_most_urgent_user():
    board = JobBoard(1)
    for name in "abc":
        board.join(spec(name), demand(), "r" + name, priority=5)
    board.join(spec("c"), demand(), "another", priority=1)
    board.join(spec("b"), demand(), "third", priority=7)
    assert list(board.queue) == ["c", "a", "b"]
    (sent,) = board.take_new()
    assert sent.key == "c"
    board.join(spec("c"), demand(), "fourth", priority=0)  # it runs already
    assert list(board.queue) == ["a", "b"]
    board.restart()
    assert list(board.queue) == ["c", "a", "b"]


def test_a_queued_job_without_users_is_never_sent():
    board = JobBoard(1, 10_000)
    board.join(spec("a"), demand(), "r1")
    board.leave("a", "r1")
    board.leave("a", "r1")
    assert board.take_new() == []
    assert board.take_releases() == []


def test_source_tokens_of_running_jobs_are_bounded_and_nobody_is_overtaken():
    board = JobBoard(4, 1000)
    for key, tokens in (("a", 600), ("b", 500), ("c", 10)):
        join(board, key, tokens)
    (sent,) = board.take_new()
    assert board.take_new() == []
    board.finish(sent.id, 5)  # its result waits for its request, its states are gone
    assert keys(board.take_new()) == ["b", "c"]


def test_a_job_longer_than_the_bound_runs_alone():
    board = JobBoard(4, 100)
    join(board, "a", 50)
    join(board, "b", 300)
    (sent,) = board.take_new()
    board.finish(sent.id, 5)
    assert keys(board.take_new()) == ["b"]


def test_bytes_of_running_jobs_are_bounded():
    board = JobBoard(4, max_bytes=100)
    for key, size in (("a", 60), ("b", 50), ("c", 40)):
        join(board, key, size=size)
    (sent,) = board.take_new()
    assert board.take_new() == []
    board.finish(sent.id, 5)
    assert keys(board.take_new()) == ["b", "c"]


def test_a_job_gets_blocks_for_its_prompt_and_keeps_those_of_its_result():
    board, pool = JobBoard(4), Pool(100)
    board.blocks = pool
    join(board, "a", 20 * SIZE, blocks=20, kept=8)
    (sent,) = board.take_new()
    assert len(sent.blocks) == 20
    assert pool.free == 80
    entry = board.finish(sent.id, 8 * SIZE + 1)
    assert entry.blocks == list(sent.blocks[:8])
    assert pool.free == 92
    board.leave("a", "ra")
    assert pool.free == 100


def test_a_failed_job_keeps_no_block():
    board, pool = JobBoard(4), Pool(100)
    board.blocks = pool
    join(board, "a", blocks=20, kept=8)
    (sent,) = board.take_new()
    assert board.finish(sent.id, 0).blocks == []
    assert pool.free == 100


def test_the_first_in_the_queue_collects_blocks_that_become_free():
    """Requests that need fewer would overtake it for ever otherwise."""
    board, pool = JobBoard(4), Pool(100)
    board.blocks = pool
    others = pool.take(70)
    join(board, "a", blocks=50, kept=20)
    join(board, "b", blocks=1, kept=1)
    assert board.take_new(growing=4) == []
    assert pool.free == 4  # one is left to each request that runs
    pool.give_back(others[:30])
    assert keys(board.take_new(growing=4)) == ["a", "b"]
    assert pool.free == 9


def test_only_the_first_in_the_queue_holds_blocks():
    """Two that collect would wait for each other's."""
    board, pool = JobBoard(4), Pool(100)
    board.blocks = pool
    others = pool.take(60)
    join(board, "a", blocks=60, kept=20)
    assert board.take_new() == []
    assert pool.free == 0
    board.join(spec("z", 3, SIZE), demand(blocks=30, kept=10), "rz", again=True)
    assert keys(board.take_new()) == ["z"]
    assert board.entries["z"].blocks
    pool.give_back(others)
    assert keys(board.take_new()) == ["a"]


def test_one_that_collects_makes_way_for_results_that_wait():
    """Their requests need a block more, and nothing else will free one."""
    board, pool = JobBoard(4), Pool(60)
    board.blocks = pool
    join(board, "a", 30 * SIZE, blocks=30, kept=30, spare=1)
    (sent,) = board.take_new()
    join(board, "b", blocks=40, kept=5)
    assert board.take_new() == []
    assert pool.free == 0
    board.finish(sent.id, 30 * SIZE)
    assert board.take_new() == []
    assert pool.free == 1


def test_a_request_that_ends_in_the_queue_gives_collected_blocks_back():
    board, pool = JobBoard(4), Pool(100)
    board.blocks = pool
    others = pool.take(70)
    join(board, "a", blocks=50, kept=20)
    assert board.take_new() == []
    board.leave("a", "ra")
    assert pool.free == 100 - len(others)
    assert board.take_releases() == []


@pytest.mark.parametrize(("spare", "together"), [(1, True), (21, False)])
def test_results_that_wait_leave_room_to_deliver_one_of_them(spare, together):
    """Of 60 blocks two results take 40: a copy of one of them needs 21 more."""
    board, pool = JobBoard(4), Pool(60)
    board.blocks = pool
    for key in "ab":
        join(board, key, blocks=25, kept=20, spare=spare)
    assert (keys(board.take_new()) == ["a", "b"]) is together


def test_a_pool_that_can_never_serve_a_job_is_known():
    assert demand(blocks=40, kept=16, spare=1).fits(40)
    assert not demand(blocks=41, kept=16, spare=1).fits(40)
    assert not demand(blocks=30, kept=30, spare=31).fits(60)


def test_a_late_result_of_an_aborted_run_is_not_that_of_an_equal_one():
    board = JobBoard(4)
    join(board, "a")
    (first,) = board.take_new()
    board.leave("a", "ra")
    join(board, "a")
    (second,) = board.take_new()
    assert first.id != second.id
    assert board.finish(first.id, 5) is None
    assert not board.entries["a"].done
    assert board.finish(second.id, 5) is board.entries["a"]


def test_a_restart_runs_everything_again_in_order_with_other_ids():
    board, pool = JobBoard(2), Pool(100)
    board.blocks = pool
    for key in "abc":
        join(board, key, blocks=10, kept=4)
    first = board.take_new()
    board.finish(first[0].id, 4 * SIZE + 1)
    board.restart()
    assert pool.free == 100
    assert board.take_releases() == [one.id for one in first]
    again = board.take_new()
    assert keys(again) == ["a", "b"]
    assert not {one.id for one in first} & {one.id for one in again}
    assert board.finish(first[1].id, 5) is None
    assert {entry.users.pop() for entry in board.entries.values()} == {"ra", "rb", "rc"}


@given(st.lists(st.tuples(
    st.sampled_from(["join", "step", "finish", "fail", "leave", "restart"]),
    st.integers(0, 5), st.integers(1, 12),
), max_size=60))
def test_no_block_is_lost_or_given_twice(events):
    board, pool = JobBoard(3, max_bytes=30), Pool(40)
    board.blocks = pool
    for event, number, blocks in events:
        key = f"k{number}"
        entry = board.entries.get(key)
        if event == "join":
            join(board, key, blocks * SIZE, blocks=blocks, kept=blocks // 2, size=blocks)
        elif event == "step":
            board.take_new()
            board.take_releases()
        elif event in ("finish", "fail") and entry is not None and entry.running:
            kept = 0 if event == "fail" else entry.demand.kept * SIZE + 1
            board.finish(entry.spec.id, kept)
        elif event == "leave":
            board.leave(key, "r" + key)
        elif event == "restart":
            board.restart()
        held = [block for one in board.entries.values() for block in one.blocks]
        assert sorted(held + pool.ids) == list(range(1, 41))
        assert set(board.queue) == {k for k, one in board.entries.items() if not one.sent}
    for key in list(board.entries):
        board.leave(key, "r" + key)
    assert pool.free == 40


def test_memo_is_least_recently_used_and_bounded_in_bytes():
    outcome = Outcome.of(JobResult([0, 1], {"gamma": 0.5}))
    memo = Memo(2 * outcome.bytes)
    for key in "ab":
        memo.put(key, outcome)
    assert memo.get("a") is not None
    memo.put("c", Outcome.of(JobResult([0], {})))
    assert memo.get("b") is None
    assert list(memo.get("a").kept) == [0, 1]
    memo.put("big", Outcome.of(JobResult(list(range(ENTRY_BYTES)), {})))
    assert memo.get("big") is memo.get("a") is None
    assert memo.bytes == 0
    none = Memo(0)
    none.put("x", outcome)
    assert none.get("x") is None


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3000)), max_size=40))
def test_a_memo_never_holds_more_than_it_may(puts):
    memo = Memo(20_000)
    for key, kept in puts:
        memo.put(str(key), Outcome.of(JobResult(list(range(kept)), {})))
        held = [memo.get(str(k)) for k in range(9)]
        assert memo.bytes == sum(one.bytes for one in held if one is not None) <= 20_000


def test_ranks_that_disagree_are_an_error():
    ours = WorkerMessage({1: JobResult([1, 2]), 2: JobResult([1])})
    theirs = WorkerMessage({1: JobResult([1, 3]), 2: JobResult(error="boom")})
    merged = ours.merged(theirs).results
    assert "different tokens" in merged[1].error
    assert merged[2].error == "boom"
    assert ours.merged(ours).results[1].kept == [1, 2]
