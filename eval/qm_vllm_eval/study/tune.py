"""Finds the smallest ratio that keeps a loss within a bound, and checks it on held-out prompts.

Quality of a prompt is its row's ``match`` in [0, 1]; its loss at a ratio is the full prompt's
quality minus the ratio's. A ratio keeps the bound if the upper end of the mean loss's interval
(95 %, bootstrap over prompts, each with its pair) does. Ratios are tested from the largest down and
the first that fails ends it: in such a fixed sequence every test has the level of a single one, for
whichever ratio is chosen (Maurer, Hothorn and Lehmacher 1995; for risks of a model Angelopoulos et
al. 2021, "Learn then Test"). Nothing need be monotone for that; where quality is not, a smaller
ratio behind one that fails is not taken.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from qm_vllm_eval.engines.base import Engine
from qm_vllm_eval.methods import METHODS, Method
from qm_vllm_eval.metrics import bootstrap_mean, mean_interval, retention
from qm_vllm_eval.own.grid import OwnGrid
from qm_vllm_eval.own.prompts import OwnPrompt
from qm_vllm_eval.row import OK, Row
from qm_vllm_eval.study.grid import run
from qm_vllm_eval.study.results import NONE, PLAIN

RATIOS = tuple(tenth / 10 for tenth in range(1, 10))
Item = TypeVar("Item")


class Rows:
    """Rows in memory, as :func:`qm_vllm_eval.study.grid.run` fills them."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def done(self) -> set[tuple[str, str, float]]:
        """What need not be measured again."""
        return {(row.sample_id, row.method, row.ratio) for row in self.rows}

    def add(self, rows: list[Row]) -> None:
        """Take finished rows."""
        self.rows += rows


@dataclass(frozen=True)
class Point:
    """What one ratio keeps; means over the prompts that worked with it and in full.

    Attributes:
        prompts: how many these are. failed: how many worked in full alone.
        tokens: N. kept_tokens: K. kv_bytes, full_kv_bytes: of K and of N positions.
        quality: at this ratio. loss, low, high: mean loss and its 95 % interval.
        retention: share of the context's benefit for the answer's likelihood, see
            :func:`qm_vllm_eval.metrics.retention`.
    """

    ratio: float
    prompts: int
    failed: int
    tokens: float
    kept_tokens: float
    kv_bytes: float
    full_kv_bytes: float
    quality: float
    loss: float
    low: float
    high: float
    retention: float

    def keeps(self, max_loss: float) -> bool:
        """Whether the interval's upper end is within the bound, and no prompt failed."""
        return self.prompts > 0 and not self.failed and self.high <= max_loss


@dataclass(frozen=True)
class Ends:
    """Mean quality with the full prompt and without context, over the same prompts.

    ``benefit_low`` is the lower end of the 95 % interval of their difference.
    """

    prompts: int
    full: float
    none: float
    benefit_low: float


@dataclass(frozen=True)
class Measured:
    """What was seen on some prompts.

    Attributes:
        points: by ratio, increasing. problems: why prompts could not be measured, by line.
    """

    points: tuple[Point, ...]
    ends: Ends
    problems: dict[int, str]


def divide(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Items to tune on and items to hold out, each in their order.

    Args:
        share: in [0, 1), of the items to hold out. Two at least are there to tune on, and where
            it is not 0 and there are three, one at least is held out.
        seed: of the draw.
    """
    count = round(share * len(items))
    count = max(round(share * len(items)), int(share > 0))
    count = max(0, min(count, len(items) - 2))
    held = set(random.Random(seed).sample(range(len(items)), count))
    return (
        [item for place, item in enumerate(items) if place not in held],
        [item for place, item in enumerate(items) if place in held],
    )


def measure(
    engine: Engine, prompts: Sequence[OwnPrompt], method: Method, ratios: Sequence[float],
    *, seed: int = 0, advanced: Callable[[int, float], object] = lambda rows, cost: None,
) -> Measured:
    """Every prompt at every ratio, in full and without context; one prefill serves all.

    Args:
        advanced: see :func:`qm_vllm_eval.study.grid.run`.
    """
    sink = Rows()
    run(grid_of(prompts, method, ratios), engine, sink, advanced=advanced)
    return summary(sink.rows, method.name, ratios, seed)


def grid_of(prompts: Sequence[OwnPrompt], method: Method, ratios: Sequence[float]) -> OwnGrid:
    """What :func:`measure` runs."""
    return OwnGrid(tuple(prompts), (METHODS[NONE], METHODS[PLAIN], method), tuple(ratios))


def summary(rows: Sequence[Row], method: str, ratios: Sequence[float], seed: int = 0) -> Measured:
    """From rows to what each ratio keeps."""
    by: dict[tuple[str, float], dict[str, Row]] = {}
    for row in rows:
        if row.status == OK:
            by.setdefault((row.method, row.ratio), {})[row.sample_id] = row
    none, full = by.get((NONE, 0.0), {}), by.get((PLAIN, 1.0), {})
    return Measured(
        tuple(
            _point(ratio, by.get((method, ratio), {}), full, none, seed)
            for ratio in sorted(ratios)
        ),
        _ends(none, full, seed),
        {row.index + 1: row.status for row in rows if row.status != OK},
    )


def choose(points: Sequence[Point], max_loss: float) -> Point | None:
    """The smallest ratio that keeps the bound with all larger ones; None if the largest fails."""
    chosen = None
    for point in sorted(points, key=lambda point: point.ratio, reverse=True):
        if not point.keeps(max_loss):
            break
        chosen = point
    return chosen


def _point(
    ratio: float, own: dict[str, Row], full: dict[str, Row], none: dict[str, Row], seed: int
) -> Point:
    both = [name for name in own if name in full]
    losses = [full[name].match - own[name].match for name in both]
    interval = mean_interval(losses, seed=seed)
    triples = [name for name in both if name in none]
    return Point(
        ratio=ratio,
        prompts=len(both),
        failed=len(full) - len(both),
        tokens=_mean([own[name].prompt_tokens for name in both]),
        kept_tokens=_mean([own[name].kept_tokens for name in both]),
        kv_bytes=_mean([own[name].kv_bytes for name in both]),
        full_kv_bytes=_mean([full[name].kv_bytes for name in both]),
        quality=_mean([own[name].match for name in both]),
        loss=interval["mean"],
        low=interval["low"],
        high=interval["high"],
        retention=retention(*(
            [part[name].nll for name in triples] for part in (none, own, full)
        )) if triples else float("nan"),
    )


def _ends(none: dict[str, Row], full: dict[str, Row], seed: int) -> Ends:
    both = [name for name in full if name in none]
    gained = [full[name].match - none[name].match for name in both]
    return Ends(
        len(full), _mean([row.match for row in full.values()]),
        _mean([none[name].match for name in both]), bootstrap_mean(gained, seed=seed)[0],
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
