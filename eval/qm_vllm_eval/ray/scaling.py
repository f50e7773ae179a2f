"""Rows per second with 1, 2, ... replicas, on the same units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from qm_vllm_eval.ray.work import Outcome


def measure(
    counts: Sequence[int], run: Callable[[int], Iterable[Outcome]]
) -> list[dict[str, Any]]:
    """One entry for each number of replicas; see :func:`entry`.

    Args:
        counts: numbers of replicas. run: outcomes of the same units with so many.
    """
    entries = [entry(count, list(run(count))) for count in sorted(set(counts))]
    return with_efficiency(entries)


def entry(replicas: int, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """``replicas``, ``rows`` answered, ``seconds`` and ``rows_per_s``.

    Seconds run from the moment the first row is in an engine to the moment the last one leaves,
    so the start of the engines is not in them, unless one starts later than the others.

    Raises:
        ValueError: no row was answered.
    """
    answers = [outcome.answer for outcome in outcomes if outcome.answer is not None]
    if not answers:
        raise ValueError(f"no row was answered with {replicas} replicas")
    first = min(answer.started for answer in answers)
    seconds = max(answer.started + answer.seconds for answer in answers) - first
    return {
        "replicas": replicas, "rows": len(answers), "seconds": seconds,
        "rows_per_s": len(answers) / seconds,
    }


def with_efficiency(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """``efficiency``: rows/s per replica over that of the entry with the fewest replicas."""
    base = entries[0]["rows_per_s"] / entries[0]["replicas"]
    return [held | {"efficiency": held["rows_per_s"] / held["replicas"] / base} for held in entries]
