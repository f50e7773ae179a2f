"""The grid of a study: which samples, methods and ratios, in an order that may stop anywhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from qm_vllm_eval.engines.base import Cell, Engine, make_row
from qm_vllm_eval.methods import Budget, Method
from qm_vllm_eval.row import Row
from qm_vllm_eval.sample import Sample, sample_id
from qm_vllm_eval.tasks import build_sample
from qm_vllm_eval.tasks.base import Exhausted

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where rows go, and what is there already."""

    def done(self) -> set[tuple[str, str, float]]:
        """(sample_id, method, ratio) of rows that need no repetition."""

    def add(self, rows: list[Row]) -> object:
        """Take finished rows."""


class Unusable(Exception):
    """A sample that can be named and not measured.

    Attributes:
        sample: as far as it is known. tokens: of its prompt.
    """

    def __init__(self, reason: str, sample: Sample, tokens: int) -> None:
        super().__init__(reason)
        self.sample, self.tokens = sample, tokens

    def row(self, cell: Cell) -> Row:
        """The row that says why."""
        return make_row(
            self.sample, cell, prompt_tokens=self.tokens, status=f"not applicable: {self}"
        )


class Plan(Protocol):
    """What :func:`run` measures."""

    def cells(self) -> list[Cell]:
        """Every method with every ratio that it has."""

    def size(self) -> int:
        """Rows in all."""

    def sample_makers(self) -> Iterator[tuple[str, Callable[[Engine], Sample]]]:
        """The id of each sample, known before it is built, and what builds it.

        The second may raise :class:`Unusable`.
        """


@dataclass(frozen=True)
class Grid:
    """What to measure.

    Attributes:
        tasks: names. samples: how many of each. lengths: tokens of a prompt.
        visible: query modes, True and/or False.
        ratios: for the methods that have a budget; the others run once.
        split: "tune" or "report".
    """

    tasks: tuple[str, ...]
    methods: tuple[Method, ...]
    ratios: tuple[float, ...]
    samples: int
    lengths: tuple[int, ...]
    visible: tuple[bool, ...]
    split: str
    haystacks: tuple[str, ...]
    first_sample: int = 0

    def cells(self) -> list[Cell]:
        """Every method with every ratio that it has."""
        return cells_of(self.methods, self.ratios)

    def names(self) -> Iterator[tuple[str, int, int, bool]]:
        """(task, length, index, visible), all families of one sample index before the next."""
        for index in range(self.first_sample, self.first_sample + self.samples):
            for length in self.lengths:
                for visible in self.visible:
                    for task in self.tasks:
                        yield task, length, index, visible

    def size(self) -> int:
        """Rows of the whole grid."""
        return len(self.cells()) * sum(1 for _ in self.names())

    def sample_makers(self) -> Iterator[tuple[str, Callable[[Engine], Sample]]]:
        """The id of each sample and what builds it, in the order of :meth:`names`."""
        for name in self.names():
            task, length, index, visible = name
            known = sample_id(task, length, self.split, index, visible)
            yield known, partial(self._build, name)

    def _build(self, name: tuple[str, int, int, bool], engine: Engine) -> Sample:
        task, length, index, visible = name
        return build_sample(
            task, length=length, split=self.split, index=index, tokenizer=engine.tokenizer,
            haystacks=self.haystacks, query_visible=visible,
        )


def cells_of(methods: Sequence[Method], ratios: Sequence[float]) -> list[Cell]:
    """Every method with every ratio that it has."""
    cells: list[Cell] = []
    for method in methods:
        if method.budget is Budget.NONE:
            cells.append((method, 0.0))
        elif method.budget is Budget.FULL:
            cells.append((method, 1.0))
        else:
            cells += [(method, ratio) for ratio in ratios]
    return cells


def run(
    grid: Plan,
    engine: Engine,
    sink: Sink,
    *,
    started: Callable[[str], object] = lambda _: None,
    advanced: Callable[[int, float], object] = lambda rows, cost: None,
) -> None:
    """Measure what the sink does not have yet.

    A task whose published documents are used up at a length is left with the samples it has: the
    log says so, and the tables count them.

    Args:
        started: called with the id of each sample before it is evaluated.
        advanced: called with a number of rows that are done and their cost in tokens; rows
            that were there already cost nothing.
    """
    done, every = sink.done(), grid.cells()
    for known, make in grid.sample_makers():
        cells = [cell for cell in every if (known, cell[0].name, cell[1]) not in done]
        advanced(len(every) - len(cells), 0.0)
        if not cells:
            continue
        started(known)
        try:
            sample = make(engine)
        except Unusable as problem:
            sink.add([problem.row(cell) for cell in cells])
            advanced(len(cells), 0.0)
            continue
        except Exhausted as error:
            log.warning("%s is left out: %s", known, error)
            advanced(len(cells), 0.0)
            continue
        rows: list[Row] = []
        try:
            for part in engine.evaluate(sample, cells):
                rows += part
                advanced(len(part), cost(part))
        finally:
            if rows:
                sink.add(rows)


def cost(rows: Sequence[Row]) -> float:
    """Rough cost of rows, in prompt tokens."""
    return float(sum(row.prompt_tokens for row in rows))
