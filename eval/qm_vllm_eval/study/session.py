"""One run of ``qm-vllm compare``: from checked arguments to a folder with a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qm_vllm.errors import UserError
from qm_vllm_eval.engines.base import Engine
from qm_vllm_eval.haystacks import HAYSTACKS, HaystackError, available
from qm_vllm_eval.methods import METHODS, UnknownMethod, choose_methods
from qm_vllm_eval.sample import SPLITS
from qm_vllm_eval.study.grid import Grid, run
from qm_vllm_eval.study.meta import code_hash, describe_run
from qm_vllm_eval.study.progress import GridProgress
from qm_vllm_eval.study.report import write_report
from qm_vllm_eval.study.store import Store, StoreError
from qm_vllm_eval.tasks import DATA, TASKS, data

ENGINES = ("reference", "vllm")
QUERIES = {"visible": (True,), "blind": (False,), "both": (True, False)}


@dataclass(frozen=True)
class StudyArguments:
    """The command's options, parsed. See ``qm-vllm compare --help``."""

    out: Path
    model: str
    model_name: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    ratios: tuple[float, ...]
    samples: int
    lengths: tuple[int, ...]
    query: str
    split: str
    haystacks: tuple[str, ...] | None
    engine: str
    dtype: str
    block_size: int
    threads: int | None
    first_sample: int


def run_study(arguments: StudyArguments) -> tuple[list[Path], bool]:
    """Measure what is missing in the folder, then write its tables, plots and page.

    Ctrl-C ends the measuring, not the writing: what is there is reported.

    Returns:
        the files of the report, and whether the whole grid was measured.

    Raises:
        UserError: an argument names something that does not exist, a text is not installed, or
            the folder belongs to another configuration.
    """
    grid = plan(arguments)
    try:
        if (arguments.out / "run_meta.json").exists():
            Store(arguments.out)  # a folder that is no study is refused before a model is loaded
        engine = start(arguments, grid.tasks)
    except (StoreError, ValueError) as error:
        raise UserError(str(error)) from error
    try:
        store = Store.open(
            arguments.out,
            configuration(arguments, grid, engine),
            describe_run(
                _public(arguments),
                methods={method.name: method.settings for method in grid.methods},
                seeds={"split": arguments.split, "first_sample": arguments.first_sample},
            ),
        )
        whole = True
        with GridProgress(total_rows=grid.size()) as progress:
            try:
                run(grid, engine, store, started=progress.start, advanced=progress.advance)
            except KeyboardInterrupt:
                whole = False
        store.finish(engine.learned())
    except (StoreError, HaystackError, ValueError) as error:
        raise UserError(str(error)) from error
    finally:
        engine.close()
    try:
        return write_report(store, arguments.out), whole
    except StoreError as error:
        raise UserError(str(error)) from error


def _public(arguments: StudyArguments) -> dict[str, Any]:
    """The arguments without this machine's folders."""
    return asdict(replace(arguments, out=Path(arguments.out.name), model=arguments.model_name))


def plan(arguments: StudyArguments) -> Grid:
    """The grid that the arguments name.

    Raises:
        UserError: with the list of what exists.
    """
    for name, value, known in (
        ("--engine", arguments.engine, ENGINES), ("--query", arguments.query, tuple(QUERIES)),
        ("--split", arguments.split, SPLITS),
    ):
        if value not in known:
            raise UserError(f"{name} {value!r} is unknown; known: {', '.join(known)}")
    names = arguments.methods
    try:
        methods = choose_methods(METHODS if names == ("all",) else names)
    except UnknownMethod as error:
        raise UserError(str(error)) from error
    return Grid(
        tasks=_tasks(arguments.tasks),
        methods=tuple(methods),
        ratios=arguments.ratios,
        samples=arguments.samples,
        lengths=arguments.lengths,
        visible=QUERIES[arguments.query],
        split=arguments.split,
        haystacks=_haystacks(arguments.haystacks),
        first_sample=arguments.first_sample,
    )


def start(arguments: StudyArguments, tasks: tuple[str, ...]) -> Engine:
    """The engine that the arguments name, with room for the answers of these tasks."""
    if arguments.engine == "vllm":
        from qm_vllm_eval.engines.vllm import VllmEngine

        return VllmEngine(
            arguments.model, dtype=arguments.dtype, block_size=arguments.block_size,
            max_model_len=max(arguments.lengths) + max(TASKS[name].room for name in tasks),
        )
    from qm_vllm_eval.engines.reference import ReferenceEngine

    return ReferenceEngine(
        arguments.model, dtype=arguments.dtype, block_size=arguments.block_size,
        threads=arguments.threads,
    )


def configuration(arguments: StudyArguments, grid: Grid, engine: Engine) -> dict[str, Any]:
    """What all rows of a folder have in common. The grid may grow, so it is not part of it."""
    return {
        "model": arguments.model_name,
        "split": arguments.split,
        "haystacks": sorted(grid.haystacks),
        "code": code_hash(),
        **engine.facts(),
    }


def _tasks(names: Iterable[str]) -> tuple[str, ...]:
    chosen: list[str] = []
    families = {task.family for task in TASKS.values()}
    for name in names:
        if name == "all":  # on every machine the same tasks: published data is asked for by name
            chosen += [task for task, about in TASKS.items() if about.haystacks != (DATA,)]
        elif name == DATA:
            chosen += [task for task, about in TASKS.items() if about.haystacks == (DATA,)]
        elif name in TASKS:
            chosen.append(name)
        elif name in families:
            chosen += [task for task, about in TASKS.items() if about.family == name]
        else:
            raise UserError(
                f"task {name!r} is unknown; known: all, {DATA}, {', '.join(TASKS)}; families: "
                f"{', '.join(sorted(families))}"
            )
    try:
        data.check(file for name in chosen for file in TASKS[name].files)
    except HaystackError as error:
        raise UserError(str(error)) from error
    return tuple(dict.fromkeys(chosen))


def _haystacks(names: tuple[str, ...] | None) -> tuple[str, ...]:
    for name in names or ():
        if name not in HAYSTACKS:
            raise UserError(f"haystack {name!r} is unknown; known: {', '.join(HAYSTACKS)}")
    wanted = names or HAYSTACKS
    missing = [name for name in wanted if name not in available()]
    if missing:
        raise UserError(
            f"the texts for {', '.join(missing)} are not installed; run scripts/fetch_texts.sh, "
            f"or go without: --haystacks {','.join(available()) or 'essays'}"
        )
    return tuple(wanted)
