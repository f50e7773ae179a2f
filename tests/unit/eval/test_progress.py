"""Progress of a grid: the estimate, and lines where there is no terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from qm_vllm_eval.study.progress import GridProgress, duration


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_estimate_and_lines() -> None:
    clock, out = Clock(), io.StringIO()
    console = Console(file=out, force_terminal=False)
    with GridProgress(10, 100.0, console=console, clock=clock) as progress:
        progress.advance(4)  # there before: 60 of cost are left
        assert progress.seconds_left is None
        progress.start("needle-[1]")
        clock.now = 20.0
        progress.advance(1, 10.0)
        assert progress.seconds_left == pytest.approx(100.0)
        assert out.getvalue() == ""
        clock.now = 40.0
        progress.advance(2, 30.0)
        assert out.getvalue() == "7 of 10 rows (70.0%), 20 s left, needle-[1]\n"
        progress.advance(3, 20.0)
    assert out.getvalue().splitlines()[-1] == "10 of 10 rows (100.0%), took 40 s"


def test_without_a_cost_rows_count_equally() -> None:
    clock = Clock()
    with GridProgress(10, console=Console(file=io.StringIO()), clock=clock) as progress:
        progress.advance(5)
        clock.now = 6.0
        progress.advance(2, 500.0)
        assert progress.seconds_left == pytest.approx(9.0)


def test_terminal() -> None:
    out = io.StringIO()
    with GridProgress(2, 2.0, console=Console(file=out, force_terminal=True)) as progress:
        progress.start("a [sample]")
        progress.advance(2, 2.0)
    assert "2/2" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"), [(48.2, "48 s"), (720, "12 min"), (11_100, "3 h 05 min")]
)
def test_duration(seconds: float, said: str) -> None:
    assert duration(seconds) == said
