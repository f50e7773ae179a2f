"""What lies in ``benchmarks/results``: files of the benchmarks and of scripts/gpu_check.py.

``<machine>/<name>.json`` is what a run wrote. ``noted.json`` holds figures whose run left no file,
each with the sentence that says where it is from, so that they too are typed once.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from qm_vllm_eval.published.form import Unknown

ROOT = Path(__file__).resolve().parents[3]
HERE = ROOT / "benchmarks" / "results"
STUDIES = ROOT / "eval" / "results"
Rows = list[dict[str, Any]]


def machines() -> list[str]:
    """Their folders."""
    return sorted(path.name for path in HERE.iterdir() if path.is_dir())


def load(machine: str, name: str) -> dict[str, Any]:
    """A file's content, {} where there is none; of a file of gpu_check.py the part of its name."""
    file = HERE / machine / f"{name}.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    part = content.get(name.split("_")[0])
    return part if isinstance(part, dict) else content


def study(folder: str, name: str) -> dict[str, Any]:
    """What a script of the studies wrote.

    Raises:
        Unknown: there is no such file.
    """
    file = STUDIES / folder / f"{name}.json"
    if not file.exists():
        raise Unknown(f"no file {folder}/{file.name}")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def noted(name: str) -> dict[str, Any]:
    """What was noted under a name: ``source``, and ``rows`` or single figures."""
    content: dict[str, Any] = json.loads((HERE / "noted.json").read_text())
    if name not in content:
        raise Unknown(f"nothing is noted as '{name}'")
    return dict(content[name])


def row_at(machine: str, name: str, length: str) -> dict[str, Any]:
    """The row of a prompt length: the first one of it."""
    content = load(machine, name)
    for row in [*content.get("rows", []), *content.get("low_load", [])]:
        if str(row.get("n", row.get("N"))) == length:
            return dict(row)
    raise Unknown(f"{machine}/{name}.json has no row of {length} tokens")


def prefills(machine: str) -> Rows:
    """Rows of the machine's prefills at the default depth, by N."""
    return sorted(load(machine, "prefill").get("rows", []), key=lambda row: int(row["n"]))


def compression_ms(row: dict[str, Any]) -> float:
    """Saliency and merge of a compressed request."""
    return float(1e3 * row["quickmerge_ttft_s"] * (row["share_saliency"] + row["share_merge"]))


def exponents(machine: str) -> tuple[float, float]:
    """Exponents of N of scoring, choosing and merging, and of a plain prefill."""
    rows = prefills(machine)
    lengths = [row["n"] for row in rows]
    return (
        slope(lengths, [compression_ms(row) for row in rows]),
        slope(lengths, [row["plain_ttft_s"] for row in rows]),
    )


def slope(lengths: list[int], spent: list[float]) -> float:
    """Exponent of N in time, by least squares over the logarithms; nan for a single length."""
    x, y = [math.log(n) for n in lengths], [math.log(s) for s in spent]
    if len(x) < 2:
        return math.nan
    return statistics.linear_regression(x, y).slope


def break_even(lengths: list[int], plain: list[float], ours: list[float]) -> float | None:
    """Length from which ours is never slower; between two lengths, the logarithms' straight line.

    Args:
        lengths: ascending, tokens.
        plain, ours: TTFT at each length, s.

    Returns:
        Tokens; the smallest length if ours is slower at none, None if it is at the largest.
    """
    behind = [math.log(b / a) for a, b in zip(plain, ours, strict=True)]
    last = max((i for i, value in enumerate(behind) if value > 0), default=None)
    if last is None:
        return float(lengths[0])
    if last == len(lengths) - 1:
        return None
    share = behind[last] / (behind[last] - behind[last + 1])
    return math.exp(
        (1 - share) * math.log(lengths[last]) + share * math.log(lengths[last + 1])
    )
