"""Cells of Tables 1 and 2, several side by side in processes of their own."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch

from qm_vllm_eval.paper import measure
from qm_vllm_eval.paper.prepared import Prepared
from qm_vllm_eval.paper.scale import Scale
from qm_vllm_eval.paper.sources import DataPaths, prepare

Job = tuple[str, str, Scale, DataPaths, int, str]
"""Task, method, scale, data, seed, device."""


def row_id(task: str, method: str, seed: int) -> str:
    """Name of a cell in the journal."""
    return f"{task}/{method}/{seed}"


def side_by_side(
    jobs: Sequence[Job], workers: int, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Rows for the journal in the order in which they are finished.

    Args:
        jobs: their tasks must be prepared (in the cache folder) already.
        workers: processes; 1 stays in this one. They share the processor's cores evenly.
    """
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield _told(measured(job), say)
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), torch.set_num_threads,
        (max(1, (cores or 1) // workers),),
    )
    with pool:
        waiting = [pool.submit(measured, job) for job in jobs]
        try:
            for future in as_completed(waiting):
                yield _told(future.result(), say)
        finally:
            for future in waiting:
                future.cancel()


def measured(job: Job) -> dict[str, Any]:
    """The row of one cell."""
    task, name, scale, paths, seed, device = job
    prepared = _prepared(task, scale, paths, device)
    row = measure.cell(name, prepared, scale, seed, torch.device(device))
    return {
        "row_id": row_id(task, name, seed), "ratio": 0.0, "status": "ok", "task": task,
        "method": name, "seed": seed, **row,
    }


@functools.lru_cache(1)
def _prepared(task: str, scale: Scale, paths: DataPaths, device: str) -> Prepared:
    return prepare(task, scale, paths, torch.device(device))


def _told(row: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    figures = (f"{name} {row[name]:.4g}" for name in ("ppl", "accuracy", "fvd") if name in row)
    say(f"{row['row_id']}: {', '.join(figures)}, N / K {row['rate']:.2f}, {row['seconds']:.0f} s")
    return row
