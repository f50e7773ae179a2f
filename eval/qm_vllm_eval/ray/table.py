"""One row of a run, and rows.parquet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qm_vllm_eval.ray.work import UNUSABLE, Outcome, Task

OK, FAILED = "ok", "failed"
FILE = "rows.parquet"


def row_of(outcome: Outcome, task: Task) -> dict[str, Any]:
    """The row of a finished unit.

    Columns, beside the task's own: ``row_id``, ``ratio``; ``status`` (ok, failed), ``failure``
    (its kind), ``reason``; ``replica``, ``tries``; ``source_tokens`` N, ``kept_tokens`` K,
    ``kv_blocks``, ``kv_bytes``; ``plugin`` (compressed, untouched) and ``note`` (why untouched);
    ``prediction``, ``answer_tokens``; ``started`` (Unix time) and ``seconds`` in the engine.
    """
    unit, answer = outcome.unit, outcome.answer
    row: dict[str, Any] = {
        "row_id": unit.row_id, "ratio": unit.ratio, "status": FAILED,
        "failure": outcome.failure, "reason": outcome.reason,
        "replica": outcome.replica, "tries": outcome.tries,
    }
    if answer is None:
        return row
    try:
        scores = task.score(unit.facts, answer)
    except ValueError as error:
        return row | {"failure": UNUSABLE, "reason": f"cannot be scored: {error}"}
    report = answer.report
    return row | {
        "status": OK,
        "source_tokens": report.get("source_tokens"), "kept_tokens": report.get("kept_tokens"),
        "kv_blocks": report.get("kv_blocks"), "kv_bytes": report.get("kv_bytes"),
        "plugin": report.get("status", ""), "note": report.get("reason", ""),
        "prediction": answer.text, "answer_tokens": len(answer.token_ids),
        "started": answer.started, "seconds": answer.seconds, **scores,
    }


def write(rows: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Write rows.parquet under its final name only when it is complete; gives its path."""
    import pyarrow as pa
    from pyarrow import parquet

    names = list(dict.fromkeys(name for row in rows for name in row)) or ["row_id"]
    full = [{name: row.get(name) for name in names} for row in rows]
    target, work = folder / FILE, folder / f".{FILE}-{os.getpid()}"
    try:
        parquet.write_table(pa.Table.from_pylist(full), work)
        os.replace(work, target)
    finally:
        work.unlink(missing_ok=True)
    return target
