"""A whole run of the tables: cells that are not measured yet, then all files from the journal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from qm_vllm_eval.baselines import METHODS
from qm_vllm_eval.paper import measure, report, table3, table4, table5
from qm_vllm_eval.paper.cells import row_id, side_by_side
from qm_vllm_eval.paper.scale import Scale
from qm_vllm_eval.paper.sources import TASKS, DataPaths, prepare
from qm_vllm_eval.ray.journal import Journal
from qm_vllm_eval.study import meta

TABLES = (1, 2, 3, 4, 5)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What to run and where.

    Attributes:
        tables: of :data:`TABLES`. Tables 1 and 2 share their cells.
        tasks: of :data:`TASKS`. paths: data of the scale full.
        device: where the decoders of Tables 1, 2 and 5 are trained.
        workers: processes that train decoders of Tables 1 and 2 side by side.
    """

    scale: Scale
    out: Path
    tables: tuple[int, ...] = TABLES
    tasks: tuple[str, ...] = TASKS
    paths: DataPaths = field(default_factory=DataPaths)
    table4: table4.Table4Data = field(default_factory=table4.Table4Data)
    table5: table5.Table5Data = field(default_factory=table5.Table5Data)
    device: str = "cpu"
    workers: int = 1
    command: str = ""


def run(options: Options, say: Say = lambda line: None) -> list[Path]:
    """Measure what is missing in ``out``, write tables, plots and the page; returns the files.

    Raises:
        DataSetError: data of a task are missing. JournalError: the folder is of another run.
    """
    out = options.out
    about = _begin(options)
    with Journal(out / "cells", _deciding(options.scale, options.paths)) as journal:
        if {1, 2} & set(options.tables):
            for row in _cells(options, journal, say):
                journal.add(row)
        cells = journal.table()
    found: dict[int, list[dict[str, Any]]] = {}
    if 3 in options.tables:
        settings = table3.SCALES[options.scale.name]
        found[3] = _once(out / "table3.json", lambda: table3.measure(settings, say))
    if 4 in options.tables:
        found[4] = table4.rows(options.scale, out, options.table4, say)
    if 5 in options.tables:
        found[5] = table5.rows(
            options.scale, out, options.table5, torch.device(options.device), say
        )
    about["ended"] = meta.now()
    _note(out, about)
    return report.write(out, options.scale, cells, _facts(out), found)


def _deciding(scale: Scale, paths: DataPaths) -> dict[str, Any]:
    return {"task": "paper tables", "scale": asdict(scale), "paths": asdict(paths)}


def _cells(options: Options, journal: Journal, say: Say) -> Iterator[Mapping[str, Any]]:
    """Missing cells, task by task; in a task seed by seed, so that a cut run is balanced."""
    scale, device = options.scale, torch.device(options.device)
    for task in options.tasks:
        wanted = [
            (seed, name) for seed in scale.seeds for name in METHODS
            if (row_id(task, name, seed), 0.0) not in journal.done
        ]
        if not wanted and task in _facts(options.out):
            continue
        say(f"{task}: the frozen encoder")
        prepared = prepare(task, scale, options.paths, device)
        _keep_facts(options.out, task, measure.facts(prepared))
        yield from side_by_side(
            [(task, name, scale, options.paths, seed, options.device) for seed, name in wanted],
            options.workers, say,
        )


def _once(file: Path, work: Callable[[], Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """What a file holds; measured and written first if there is none."""
    if not file.is_file():
        _write(file, list(work()))
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return rows


def _begin(options: Options) -> dict[str, Any]:
    arguments = {
        "command": options.command, "scale": options.scale.name, "tables": list(options.tables),
        "tasks": list(options.tasks), "device": options.device, **asdict(options.paths),
    }
    return meta.describe_run(
        arguments, methods={}, seeds={"seeds": list(options.scale.seeds)}
    )


def _note(out: Path, about: Mapping[str, Any]) -> None:
    """Add this run to run_meta.json."""
    file = out / "run_meta.json"
    held = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"runs": []}
    _write(file, {"runs": [*held["runs"], dict(about)]})


def _facts(out: Path) -> dict[str, Any]:
    file = out / "tasks.json"
    held: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return held


def _keep_facts(out: Path, task: str, facts: Mapping[str, Any]) -> None:
    _write(out / "tasks.json", {**_facts(out), task: dict(facts)})


def _write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.replace(file)
