"""The job board: sharing, admission, release."""

from __future__ import annotations

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.messages import JobResult, JobSpec, QuickMergeWorkerMetadata
from qm_vllm.engine.requests.job_board import JobBoard
from qm_vllm.engine.requests.memo import Memo


def spec(key: str) -> JobSpec:
    return JobSpec(key, [1, 2, 3], QuickMergeConfig(), 4, (1, 2), [], 32)


def test_equal_requests_share_a_job_until_the_last_leaves():
    board = JobBoard(4, 10_000)
    assert board.join(spec("a"), "r1") is board.join(spec("a"), "r2")
    assert [s.key for s in board.take_new()] == ["a"]
    board.leave("a", "r1")
    assert board.take_releases() == []
    assert "a" in board.entries
    board.leave("a", "r2")
    assert board.take_releases() == ["a"]
    assert not board.entries


def test_admission_is_bounded_and_in_order_and_urgent_goes_first():
    board = JobBoard(2, 10_000)
    for name in "abc":
        board.join(spec(name), "r" + name)
    board.join(spec("z"), "rz", urgent=True)
    assert [s.key for s in board.take_new()] == ["z", "a"]
    assert board.take_new() == []
    board.leave("z", "rz")
    assert [s.key for s in board.take_new()] == ["b"]


def test_a_queued_job_without_users_is_never_sent():
    board = JobBoard(1, 10_000)
    board.join(spec("a"), "r1")
    board.leave("a", "r1")
    board.leave("a", "r1")
    assert board.take_new() == []
    assert board.take_releases() == []


def test_memo_is_least_recently_used():
    memo = Memo(2)
    for key in "ab":
        memo.put(JobResult(key, [0, 1], {"gamma": 0.5}))
    assert memo.get("a") is not None
    memo.put(JobResult("c", [0], {}))
    assert memo.get("b") is None
    assert list(memo.get("a").kept) == [0, 1]
    assert Memo(0).put(JobResult("x", [7], {})).kept[0] == 7


def test_ranks_that_disagree_are_an_error():
    ours = QuickMergeWorkerMetadata({"a": JobResult("a", [1, 2]), "b": JobResult("b", [1])})
    theirs = QuickMergeWorkerMetadata(
        {"a": JobResult("a", [1, 3]), "b": JobResult("b", error="boom")}
    )
    merged = ours.aggregate(theirs).results
    assert "different tokens" in merged["a"].error
    assert merged["b"].error == "boom"
    assert ours.aggregate(ours).results["a"].kept == [1, 2]


def long_spec(key: str, tokens: int) -> JobSpec:
    return JobSpec(key, [1] * tokens, QuickMergeConfig(), 4, (1, 2), [], 32)


def test_source_tokens_of_running_jobs_are_bounded_and_nobody_is_overtaken():
    board = JobBoard(4, 1000)
    for key, tokens in (("a", 600), ("b", 500), ("c", 10)):
        board.join(long_spec(key, tokens), key)
    assert [spec.key for spec in board.take_new()] == ["a"]
    assert board.take_new() == []
    board.entries["a"].done = True  # its result waits for blocks, its states are gone
    assert [spec.key for spec in board.take_new()] == ["b", "c"]


def test_a_job_longer_than_the_bound_runs_alone():
    board = JobBoard(4, 100)
    board.join(long_spec("a", 50), "a")
    board.join(long_spec("b", 300), "b")
    assert [spec.key for spec in board.take_new()] == ["a"]
    board.entries["a"].done = True
    assert [spec.key for spec in board.take_new()] == ["b"]
