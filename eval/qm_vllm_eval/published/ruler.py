"""Tables of RULER's 13 tasks at 4,096 tokens, from the results.csv of two studies."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qm_vllm_eval.published.form import Unknown, figure, markdown, ratio_of
from qm_vllm_eval.published.stored import STUDIES
from qm_vllm_eval.tasks.ruler import TASKS

FOLDERS = {
    "visible": "ruler-qwen2.5-coder-0.5b-visible", "blind": "ruler-qwen2.5-coder-0.5b-blind",
}
"""Whether the compressor sees the question, and the folder of that study."""
LATER = "-layers"
"""Ends the folder's name of a later run, which has its own full and empty prompts."""
LENGTH = 4096
TIMES = (2, 4, 8, 16)
"""How many times smaller the KV becomes; a ratio is one over it."""
PLAIN, REFERENCES = "plain", ("none", "plain")
FIRST = ("native", "native-equal-layers", "native-one-choice", "quickmerge")
"""Methods of the plug-in, which stand before the others."""
NAMES = tuple(task.name for task in TASKS)


@dataclass(frozen=True)
class Cell:
    """One task of one method at one ratio.

    Attributes:
        match: the score, in [0, 1]. kv_bytes: of a prompt, mean. samples: that worked.
    """

    match: float
    kv_bytes: float
    samples: int


Cells = dict[tuple[str, float], dict[str, Cell]]
"""By method and ratio: the tasks that have a score, where no sample failed."""


def runs(mode: str) -> list[Cells]:
    """What a study holds, and what a later run of it does.

    Raises:
        Unknown: no such study, or the full prompt lacks a task.
    """
    if mode not in FOLDERS:
        raise Unknown(f"no RULER '{mode}'; there are {', '.join(FOLDERS)}")
    found = [_cells(FOLDERS[mode])]
    if (STUDIES / (FOLDERS[mode] + LATER)).exists():
        found.append(_cells(FOLDERS[mode] + LATER))
    return found


def _cells(folder: str) -> Cells:
    file = STUDIES / folder / "results.csv"
    if not file.exists():
        raise Unknown(f"no file {folder}/{file.name}")
    found: Cells = {}
    with file.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if row["task"] not in NAMES or float(row["length"]) != LENGTH:
                continue
            if row["status"] != "ok" or not row["match"]:
                continue
            own = found.setdefault((row["method"], float(row["ratio"])), {})
            own[row["task"]] = Cell(
                float(row["match"]), float(row["kv_bytes"]), int(float(row["samples"]))
            )
    if missing := set(NAMES) - set(found.get((PLAIN, 1.0), {})):
        raise Unknown(f"{folder} has no full prompt of {', '.join(sorted(missing))}")
    return found


def methods(found: Sequence[Cells]) -> list[tuple[str, Cells]]:
    """All but the references, each with its run: the plug-in's first, the others by name."""
    runs_of = {
        method: held for held in found for method, _ in held if method not in REFERENCES
    }
    names = [name for name in FIRST if name in runs_of] + sorted(runs_of.keys() - set(FIRST))
    return [(name, runs_of[name]) for name in names]


def mean(own: Mapping[str, Cell], column: str = "match") -> float:
    """Over the 13 tasks, each with the same weight; nan where one is missing."""
    if set(own) != set(NAMES):
        return math.nan
    return sum(float(getattr(cell, column)) for cell in own.values()) / len(NAMES)


def table(mode: str) -> str:
    """A method a row: the mean score in full and at each ratio, per cent, and the samples."""
    return markdown([
        {
            "method": method, "full": _percent(mean(held[PLAIN, 1.0])),
            **{f"{times}x": _percent(mean(held.get((method, 1 / times), {}))) for times in TIMES},
            "samples a task": _samples(held, method),
        }
        for method, held in methods(runs(mode))
    ])


def by_task(mode: str, ratio: str) -> str:
    """Methods by tasks at one ratio, per cent; the full prompt first, that of a later run last."""
    found, wanted = runs(mode), ratio_of(ratio)
    lines = [("full prompt", found[0][PLAIN, 1.0])]
    lines += [
        (name, held[name, wanted]) for name, held in methods(found) if (name, wanted) in held
    ]
    later = [("full prompt, as native", held[PLAIN, 1.0]) for held in found[1:]]
    if len(lines) == 1:
        raise Unknown(f"{FOLDERS[mode]} has nothing at {ratio}")
    return markdown([
        {
            "method": name,
            **{task: _percent(own[task].match) if task in own else "" for task in NAMES},
            "mean": _percent(mean(own)),
        }
        for name, own in [*lines, *later]
    ])


def _percent(share: float) -> str:
    return "" if math.isnan(share) else figure(100 * share, ".1f")


def _samples(held: Cells, method: str) -> str:
    counts = {
        cell.samples for (name, _), own in held.items() if name in (method, PLAIN)
        for cell in own.values()
    }
    return "-".join(str(count) for count in sorted({min(counts), max(counts)}))
