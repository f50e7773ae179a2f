"""One run of ``qm-vllm compare``: from checked arguments to a folder with a report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from qm_vllm.errors import UserError
from qm_vllm_eval.engines.base import Engine
from qm_vllm_eval.haystacks import HAYSTACKS, HaystackError, available
from qm_vllm_eval.methods import METHODS, Method, UnknownMethod, choose_methods
from qm_vllm_eval.own.grid import OwnGrid
from qm_vllm_eval.own.prompts import Reading, read_prompts, window_of
from qm_vllm_eval.sample import SPLITS
from qm_vllm_eval.study.grid import Grid, run
from qm_vllm_eval.study.meta import code_hash, describe_run
from qm_vllm_eval.study.progress import GridProgress
from qm_vllm_eval.study.report import write_report
from qm_vllm_eval.study.store import Store, StoreError
from qm_vllm_eval.tasks import DATA, RULER, TASKS, data

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
    data: Path | None = None
    chat: bool = True
    answer_tokens: int = 64


@dataclass(frozen=True)
class Planned:
    """What a run measures.

    Attributes:
        grid: samples, methods, ratios. longest: tokens of the longest prompt and its answer.
        about: what all rows of a folder have in common beside model, code and engine.
        skipped: lines of a user's file that cannot be used, and why, by number.
    """

    grid: Grid | OwnGrid
    longest: int
    about: dict[str, Any]
    skipped: dict[int, str] = field(default_factory=dict)


def run_study(
    arguments: StudyArguments, told: Callable[[str], object] = lambda sentence: None
) -> tuple[list[Path], bool]:
    """Measure what is missing in the folder, then write its tables, plots and page.

    Ctrl-C ends the measuring, not the writing: what is there is reported.

    Args:
        told: gets a sentence for each line of a user's file that cannot be used.

    Returns:
        the files of the report, and whether the whole grid was measured.

    Raises:
        UserError: an argument names something that does not exist, a text is not installed, or
            the folder belongs to another configuration.
    """
    planned = plan(arguments)
    grid = planned.grid
    for sentence in skipped_lines(planned.skipped):
        told(sentence)
    try:
        if (arguments.out / "run_meta.json").exists():
            Store(arguments.out)  # a folder that is no study is refused before a model is loaded
        engine = start_engine(
            arguments.engine, arguments.model, dtype=arguments.dtype, threads=arguments.threads,
            block_size=arguments.block_size, longest=planned.longest,
        )
    except (StoreError, ValueError) as error:
        raise UserError(str(error)) from error
    try:
        store = Store.open(
            arguments.out,
            configuration(arguments, planned, engine),
            describe_run(
                _public(arguments),
                methods={method.name: method.settings for method in grid.methods},
                seeds={"split": arguments.split, "first_sample": arguments.first_sample},
            ) | ({"skipped": planned.skipped} if planned.skipped else {}),
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
    data = Path(arguments.data.name) if arguments.data else None
    shown = replace(
        arguments, out=Path(arguments.out.name), model=arguments.model_name, data=data
    )
    return asdict(shown)


def skipped_lines(skipped: dict[int, str]) -> list[str]:
    """A sentence for each line that cannot be used."""
    return [f"line {number}: {reason}" for number, reason in skipped.items()]


def plan(arguments: StudyArguments) -> Planned:
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
    if arguments.data is not None:
        return _own(arguments, arguments.data, tuple(methods))
    grid = Grid(
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
    about = {"split": arguments.split, "haystacks": sorted(grid.haystacks)}
    room = max(TASKS[name].room for name in grid.tasks)
    return Planned(grid, max(arguments.lengths) + room, about)


def _own(arguments: StudyArguments, data: Path, methods: tuple[Method, ...]) -> Planned:
    """The grid over a user's own prompts."""
    reading = Reading(arguments.chat, arguments.answer_tokens, window_of(arguments.model))
    prompts, skipped = read_prompts(data, tokenizer_of(arguments.model), reading)
    chosen = prompts[arguments.first_sample :][: arguments.samples or None]
    if not chosen:
        raise UserError(
            f"{data} has {len(prompts)} prompts that can be used; --first-sample "
            f"{arguments.first_sample} leaves none"
        )
    content = hashlib.sha256(data.read_bytes()).hexdigest()[:16]
    return Planned(
        OwnGrid(tuple(chosen), methods, arguments.ratios, QUERIES[arguments.query]),
        max(prompt.tokens + prompt.reply for prompt in chosen),
        {"data": content, "chat": reading.chat, "answer_tokens": reading.answer_tokens},
        skipped,
    )


def start_engine(
    name: str, model: str, *, dtype: str, block_size: int, threads: int | None, longest: int
) -> Engine:
    """An engine by its name, for prompts and answers of so many tokens together."""
    if name == "vllm":
        from qm_vllm_eval.engines.vllm import VllmEngine

        return VllmEngine(model, dtype=dtype, block_size=block_size, max_model_len=longest)
    from qm_vllm_eval.engines.reference import ReferenceEngine

    return ReferenceEngine(model, dtype=dtype, block_size=block_size, threads=threads)


def tokenizer_of(model: str) -> Any:
    """A model's tokenizer.

    Raises:
        UserError: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(f"the model's tokenizer cannot be read: {error}") from error


def configuration(
    arguments: StudyArguments, planned: Planned, engine: Engine
) -> dict[str, Any]:
    """What all rows of a folder have in common. The grid may grow, so it is not part of it."""
    return {
        "model": arguments.model_name,
        **planned.about,
        "code": code_hash(),
        **engine.facts(),
    }


def _tasks(names: Iterable[str]) -> tuple[str, ...]:
    chosen: list[str] = []
    families = {task.family for task in TASKS.values()}
    own = [(task, about) for task, about in TASKS.items() if about.family != RULER]
    for name in names:
        if name == "all":  # everywhere the same: published data and RULER are asked for by name
            chosen += [task for task, about in own if about.haystacks != (DATA,)]
        elif name == DATA:
            chosen += [task for task, about in own if about.haystacks == (DATA,)]
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
