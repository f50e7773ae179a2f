"""Back-pressure, retries and the places of lost units, with replicas that die when told."""

from __future__ import annotations

import pytest

from qm_vllm_eval.ray.pool import LocalPool, drive
from qm_vllm_eval.ray.runner import left
from qm_vllm_eval.ray.work import LOST, REFUSED, TOO_LONG
from tests.unit.eval.ray_fakes import FakePool, FakeReplica, FakeTask


def keys(outcomes):
    return sorted(outcome.unit.key for outcome in outcomes)


def all_keys(rows):
    return sorted((f"row-{number}", ratio) for number in range(rows) for ratio in (1.0, 0.5))


@pytest.mark.parametrize(("replicas", "in_flight"), [(1, 1), (2, 1), (2, 3), (5, 4)])
def test_every_unit_once_and_never_more_in_flight_than_allowed(replicas, in_flight):
    pool = FakePool(replicas, in_flight)
    outcomes = list(drive(FakeTask(20).units(), pool))
    assert keys(outcomes) == all_keys(20)
    assert pool.most <= replicas * in_flight
    assert all(outcome.answer is not None and outcome.tries == 1 for outcome in outcomes)


def test_units_are_read_only_when_there_is_room():
    task = FakeTask(1000)
    running = drive(task.units(), FakePool(2, 3))
    for _ in range(10):
        next(running)
    assert task.read <= 10 + 2 * 3 + 1


def test_units_of_a_dead_replica_run_again_and_alone():
    pool = FakePool(2, 3, deadly={("row-1", 1.0): 1})
    outcomes = list(drive(FakeTask(10).units(), pool))
    assert keys(outcomes) == all_keys(10)
    again = {outcome.unit.key for outcome in outcomes if outcome.tries == 2}
    assert ("row-1", 1.0) in again
    assert all(outcome.answer is not None for outcome in outcomes)
    later = [held for held in pool.together if ("row-1", 1.0) in held][-1]
    assert later == {("row-1", 1.0)}


def test_a_unit_that_kills_every_replica_fails_with_the_reason_and_takes_none_along():
    deadly = ("row-3", 0.5)
    outcomes = list(drive(FakeTask(10).units(), FakePool(2, 4, deadly={deadly: 99})))
    assert keys(outcomes) == all_keys(10)
    (failed,) = [outcome for outcome in outcomes if outcome.answer is None]
    assert (failed.unit.key, failed.failure, failed.tries) == (deadly, LOST, 3)
    assert "died" in failed.reason
    assert all(outcome.tries <= 2 for outcome in outcomes if outcome is not failed)


def test_a_unit_with_a_reason_reaches_no_replica():
    outcomes = list(drive(FakeTask(3, bad=(1,)).units(), FakePool(1, 1)))
    bad = [outcome for outcome in outcomes if outcome.failure]
    assert [(b.unit.row_id, b.failure, b.tries) for b in bad] == [("row-1", TOO_LONG, 0)] * 2
    assert keys(outcomes) == all_keys(3)


def test_one_refused_request_fails_alone():
    replica = FakeReplica()
    replica.refused = {("row-0", 0.5)}
    outcomes = list(drive(FakeTask(3).units(), LocalPool(replica, 2)))
    assert keys(outcomes) == all_keys(3)
    assert [o.failure for o in outcomes if o.unit.key == ("row-0", 0.5)] == [REFUSED]
    assert sum(outcome.answer is None for outcome in outcomes) == 1


def test_no_units_no_waiting():
    assert list(drive(iter(()), FakePool(1, 1))) == []


def test_left_gives_each_key_once():
    units = [*FakeTask(3).units(), *FakeTask(2).units()]
    done = {("row-0", 1.0)}
    assert keys_of(left(iter(units), done)) == [key for key in all_keys(3) if key not in done]


def keys_of(units):
    return sorted(unit.key for unit in units)
