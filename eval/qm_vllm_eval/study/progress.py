"""How far a grid is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

EVERY = 30.0
"""Seconds between two lines where standard error is no terminal."""


class GridProgress:
    """Context manager that shows rows done, time left and the current sample.

    Time left is what a unit of cost took in this run, times the cost that is left.
    """

    def __init__(
        self,
        total_rows: int,
        total_cost: float | None = None,
        *,
        console: Console | None = None,
        every: float = EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is shown before ``with``.

        Args:
            total_rows: of the whole grid.
            total_cost: of the whole grid, in the unit of :meth:`advance`; if None, rows that are
                left count as much as the mean of those measured so far.
            console: where to write; standard error by default.
            every: seconds between lines where the console is no terminal.
        """
        self._rows, self._cost = total_rows, total_cost
        self._each = (total_cost or 0.0) / max(total_rows, 1)
        self._done, self._measured, self._spent = 0, 0, 0.0
        self._sample = ""
        self._console = console or Console(stderr=True)
        self._every, self._clock = every, clock
        self._start = self._last = clock()
        self._bar: Progress | None = None

    def __enter__(self) -> GridProgress:
        self._start = self._last = self._clock()
        if self._console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(), BarColumn(bar_width=28), MofNCompleteColumn(),
                TextColumn("{task.fields[left]}"), TextColumn("[dim]{task.fields[sample]}"),
                console=self._console, transient=False,
            )
            self._task = self._bar.add_task("rows", total=self._rows, left="", sample="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, sample="")
            self._bar.stop()
        else:
            self._sample = ""
            self._line()

    def start(self, name: str) -> None:
        """Name the sample that is measured now."""
        self._sample = name
        self._show()

    def advance(self, rows: int = 1, cost: float = 0.0) -> None:
        """Count rows as done.

        Args:
            cost: of these rows. Rows without cost were there before this run: the cost that is
                left falls by the average row's, and the speed is not touched.
        """
        self._done += rows
        if cost > 0:
            self._measured += rows
            self._spent += cost
        elif self._cost is not None:
            self._cost -= self._each * rows
        self._show()

    @property
    def seconds_left(self) -> float | None:
        """Estimate, in seconds; None before the first row of this run."""
        if self._spent <= 0:
            return None
        if self._cost is None:
            left = self._spent / self._measured * max(self._rows - self._done, 0)
        else:
            left = max(self._cost - self._spent, 0.0)
        return (self._clock() - self._start) / self._spent * left

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, left=self._left(),
                             sample=self._sample.replace("[", "\\["))
        elif self._clock() - self._last >= self._every:
            self._line()

    def _line(self) -> None:
        self._last = self._clock()
        share = self._done / self._rows if self._rows else 1.0
        said = [f"{self._done:,} of {self._rows:,} rows ({share:.1%})", self._left(), self._sample]
        self._console.print(", ".join(filter(None, said)), markup=False, highlight=False,
                            soft_wrap=True)

    def _left(self) -> str:
        if self._done >= self._rows:
            return f"took {duration(self._clock() - self._start)}"
        left = self.seconds_left
        return "" if left is None else f"{duration(left)} left"


def duration(seconds: float) -> str:
    """Seconds as people say it: "48 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
