"""Ranks that agree: a failure on one ends the unit on all, and nobody waits for anybody else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from qm_vllm.engine.agreement import OtherRankFailed, gather, together
from qm_vllm_patches import ranks

WORLD, LONGEST_S = 3, 20


class Group:
    """Ranks as threads; each collective is met by all of them, or the test fails."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(WORLD, timeout=LONGEST_S)
        self.slots: list[Any] = [None] * WORLD
        self.mine = threading.local()

    def exchange(self, kind: str, value: Any) -> list[Any]:
        self.slots[self.mine.rank] = (kind, value)
        self.barrier.wait()
        got = list(self.slots)
        self.barrier.wait()
        assert {name for name, _ in got} == {kind}, "ranks are in different collectives"
        return [value for _, value in got]

    def any_rank(self, flag: bool) -> bool:
        return any(self.exchange("any", flag))

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.exchange("gather", rows))

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        ends: list[Any] = [None] * WORLD

        def rank(number: int) -> None:
            self.mine.rank = number
            try:
                ends[number] = work(number)
            except Exception as error:
                ends[number] = error

        threads = [threading.Thread(target=rank, args=(i,)) for i in range(WORLD)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONGEST_S)
        return ends


@pytest.fixture
def group(monkeypatch):
    made = Group()
    monkeypatch.setattr(ranks, "any_rank", made.any_rank)
    monkeypatch.setattr(ranks, "gather_rows", made.gather_rows)
    return made


def test_ranks_that_succeed_have_all_rows(group):
    def work(rank: int) -> list[int]:
        return together(lambda: gather(lambda: torch.tensor([rank])).tolist())

    assert group.run(work) == [[0, 1, 2]] * WORLD


@pytest.mark.parametrize("place", ["before", "in", "after"])
@pytest.mark.parametrize("broken", [{0}, {1}, {0, 2}])
def test_a_failure_anywhere_ends_the_unit_on_all_ranks(group, place, broken):
    def work(rank: int) -> str:
        def fail(here: str) -> None:
            if here == place and rank in broken:
                raise ArithmeticError(place)

        def rows() -> torch.Tensor:
            fail("in")
            return torch.tensor([rank])

        def unit() -> None:
            fail("before")
            gather(rows)
            fail("after")

        try:
            together(unit)
        except Exception as error:
            first = type(error)
        else:
            first = None
        together(lambda: gather(lambda: torch.tensor([rank])))  # and they are still in step
        return first

    ends = group.run(work)
    for rank, end in enumerate(ends):
        assert end is (ArithmeticError if rank in broken else OtherRankFailed)
