"""Which files of a published set are read: those of a split, or one a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qm_vllm_eval.datasets.published import (
    Published,
    PublishedRows,
    absent,
    check_split,
    hub_records,
    is_hub_name,
    source_path,
)
from qm_vllm_eval.datasets.rows import DataSetError, Record, Row, files_of


def split_files(of: Published, source: str | Path, split: str) -> tuple[str, list[Path]]:
    """The name of a file or folder, and its files of a split, one at least.

    Raises:
        DataSetError: no such split, or nothing is there.
    """
    path = source_path(of, source, split)
    try:
        return path.name, files_of(path, split)
    except DataSetError as error:
        raise absent(of, str(error)) from error


def open_tasks(
    of: Published, source: str | Path, split: str, task: str | None, tasks: Sequence[str],
    columns: Sequence[str], read_file: Callable[[Path], Iterator[Record]],
    rows: Callable[[str, Iterator[Record]], Iterator[Row]],
) -> PublishedRows[Row]:
    """One task of a set, or all that a folder holds one after the other.

    Args:
        source: a TASK.jsonl, a folder that holds such files anywhere below it, or the name on
            the hub (then ``task`` is needed, and the package ``datasets``).
        tasks: that there are. columns: that are read on the hub.
        read_file: the records of one file. rows: what a task's records hold.

    Raises:
        DataSetError: no such split, nothing is there, no task for the hub, or it cannot be asked;
            while iterating: a file cannot be read.
    """
    known = ", ".join(tasks)
    if is_hub_name(source):
        check_split(of, split)
        if task is None:
            raise DataSetError(f"name a task of {source}; there are {known}")
        stream, named = hub_records(of, str(source), task, split, columns), task
        return PublishedRows(str(source), lambda _: rows(named, stream()))
    path = source_path(of, source, split)
    wanted = (task,) if task else tasks
    files = [path] if path.is_file() else [
        file for name in wanted for file in sorted(path.rglob(f"{name}.jsonl"))
    ]
    if not files:
        raise absent(of, f"{path} has no file of a task ({known})")

    def read(_: Any) -> Iterator[Row]:
        for file in files:
            yield from rows(task or file.stem, read_file(file))

    return PublishedRows(path.name, read)
