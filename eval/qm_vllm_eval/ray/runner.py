"""A run from its units to its files: which engines, what is left to do, what is written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qm_vllm.errors import UserError
from qm_vllm_eval.ray import report, scaling, table
from qm_vllm_eval.ray.journal import Journal
from qm_vllm_eval.ray.pool import LocalPool, drive
from qm_vllm_eval.ray.replica import replica_class
from qm_vllm_eval.ray.work import EngineSettings, Key, Outcome, Task, Unit
from qm_vllm_eval.study import meta

STOCK, ACTORS, LOCAL = "stock", "actors", "local"
ENGINES = (STOCK, ACTORS, LOCAL)


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; none of it changes a row's figures.

    Attributes:
        out: folder of the results.
        engine: "stock" (Ray Data LLM's processor; text only), "actors", or "local" (this
            process, no Ray).
        replicas: engines. address: of a Ray cluster; None: a local one.
        in_flight: most units that one replica has, running and queued; beyond the engine's
            max_num_seqs, a row's seconds include its time in the queue.
        retry_failed: run units again that failed in an earlier part of the run.
        scaling: numbers of replicas to measure rows/s with, before the run. scaling_units: of
            how many units.
        command: what was typed, for the report.
    """

    out: Path
    engine: str = STOCK
    replicas: int = 1
    address: str | None = None
    in_flight: int = 1
    retry_failed: bool = False
    scaling: tuple[int, ...] = ()
    scaling_units: int = 8
    command: str = ""


@dataclass(frozen=True)
class Finished:
    """What a run left behind. ``failed``: rows with a reason."""

    paths: list[Path]
    summary: Mapping[str, Any]
    failed: list[dict[str, Any]]


def run(
    task: Task, settings: EngineSettings, model_name: str, options: RunOptions,
    tell: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> Finished:
    """Run what is not in the journal, then write all files from the journal.

    Args:
        model_name: what files call the model. tell: is called with each new row.

    Raises:
        UserError: an engine or Ray does not start. JournalError: the folder is of another run.
        DataSetError: the data cannot be read.
    """
    deciding = task.settings() | {"model": model_name} | settings.deciding()
    started = meta.now()
    with Journal(options.out, deciding, retry_failed=options.retry_failed) as journal:
        entries: list[dict[str, Any]] = []
        found = 0
        if options.engine == LOCAL:
            found = _write(_local(task, settings, options, journal.done), task, journal, tell)
        elif options.scaling or _left(task, journal.done):
            from qm_vllm_eval.ray.cluster import cluster

            most = max((options.replicas, *options.scaling))
            with cluster(options.address, most * settings.tensor_parallel) as held:
                held.check(most, settings.tensor_parallel)
                gpus = held.gpus > 0
                if options.scaling:
                    entries = scaling.measure(
                        options.scaling,
                        lambda count: _scaling_run(task, settings, options, count, gpus),
                    )
                outcomes = _clustered(
                    task, settings, options, journal.done, options.replicas, gpus
                )
                found = _write(outcomes, task, journal, tell)
        rows = journal.table()
    paths = [table.write(rows, options.out)]
    about = {
        "task": task.name, "command": options.command, "started": started, "ended": meta.now(),
        "new_rows": found, "model": model_name, "engine": options.engine,
        "replicas": options.replicas, "in_flight": options.in_flight,
        "settings": settings.deciding(), "versions": meta.versions(_ray_version()),
        "hardware": meta.hardware(), "commit": meta.commit(),
    }
    summary = report.summarise(rows, task.metrics, task.facts(), about, task.flags)
    if entries:
        summary["scaling"] = entries
    failed = [row for row in rows if row["status"] != table.OK]
    paths += report.write(summary, report.markdown(summary, failed), options.out)
    return Finished(paths, summary, failed)


def left(units: Iterator[Unit], done: set[Key]) -> Iterator[Unit]:
    """Units that are not in ``done``, each once."""
    seen: set[Key] = set()
    for unit in units:
        if unit.key not in done and unit.key not in seen:
            seen.add(unit.key)
            yield unit


def _left(task: Task, done: set[Key]) -> bool:
    return next(left(task.units(), done), None) is not None


def _write(
    outcomes: Iterator[Outcome], task: Task, journal: Journal,
    tell: Callable[[Mapping[str, Any]], None],
) -> int:
    found = 0
    for outcome in outcomes:
        if outcome.unit.key in journal.done:
            continue  # Ray Data may give a row twice if a worker dies while it sends
        row = table.row_of(outcome, task)
        journal.add(row)
        tell(row)
        found += 1
    return found


def _local(
    task: Task, settings: EngineSettings, options: RunOptions, done: set[Key]
) -> Iterator[Outcome]:
    units = left(task.units(), done)
    first = next(units, None)
    if first is None:
        return
    pool = LocalPool(replica_class(settings)(settings), options.in_flight)
    try:
        yield from drive(itertools.chain([first], units), pool)
    finally:
        pool.close()


def _clustered(
    task: Task, settings: EngineSettings, options: RunOptions, done: set[Key], replicas: int,
    gpus: bool,
) -> Iterator[Outcome]:
    if options.engine == STOCK:
        from qm_vllm_eval.ray import stock

        yield from stock.run(task, done, settings, replicas, options.in_flight, gpus=gpus)
        return
    if options.engine != ACTORS:
        raise UserError(f"no engine {options.engine!r}; there are {', '.join(ENGINES)}")
    from qm_vllm_eval.ray.actors import ActorPool

    pool = ActorPool(settings, replicas, options.in_flight, gpus=gpus)
    try:
        pool.ready()
        yield from drive(left(task.units(), done), pool)
    finally:
        pool.close()


def _scaling_run(
    task: Task, settings: EngineSettings, options: RunOptions, replicas: int, gpus: bool
) -> Iterator[Outcome]:
    """The first units that may run, with actors: their start is over when the clock starts."""
    from qm_vllm_eval.ray.actors import ActorPool

    usable = (unit for unit in task.units() if not unit.failure)
    pool = ActorPool(settings, replicas, options.in_flight, gpus=gpus)
    try:
        pool.ready()
        yield from drive(itertools.islice(usable, options.scaling_units), pool)
    finally:
        pool.close()


def _ray_version() -> dict[str, str]:
    from importlib import metadata

    try:
        return {"ray": metadata.version("ray")}
    except metadata.PackageNotFoundError:
        return {}
