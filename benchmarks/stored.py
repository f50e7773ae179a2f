"""What lies in ``results/<machine>/``: files of the benchmarks and of scripts/gpu_check.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saliency import slope

HERE = Path(__file__).parent / "results"
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
