"""The comparison of a run: whole clips, merged, around random tokens, chance; submissions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qm_vllm_eval.datasets.ego4d_nlq import Ego4dNlq
from qm_vllm_eval.ego4d.task import Ego4dTask, chance, predictions
from qm_vllm_eval.localisation import METRICS, write_submission
from qm_vllm_eval.metrics import mean_interval
from qm_vllm_eval.ray.table import FILE, OK

COMPARISON = "comparison"


def write_comparison(task: Ego4dTask, out: Path) -> list[Path]:
    """``comparison.md`` and ``.json``, and a submission for each ratio and way; their paths."""
    import pyarrow.parquet as pq

    file = out / FILE
    if not file.is_file():
        return []
    rows = [row for row in pq.read_table(file).to_pylist() if row["status"] == OK]
    table = comparison(rows, chance(iter(Ego4dNlq(
        Path(task.annotations), Path(task.features), width=task.width,
        features_per_second=task.features_per_second,
    ))))
    paths = []
    for line in table:
        if line["way"] == "chance":
            continue
        path = out / f"submission-{line['way']}-{line['ratio']:g}.json"
        write_submission(path, predictions(rows, line["ratio"], line["way"]))
        paths.append(path)
    (out / f"{COMPARISON}.json").write_text(json.dumps(table, indent=1) + "\n")
    (out / f"{COMPARISON}.md").write_text(markdown(table))
    return [out / f"{COMPARISON}.md", out / f"{COMPARISON}.json", *paths]


def comparison(
    rows: Sequence[dict[str, Any]], guessed: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """A line for each ratio and way, then chance: N, K, and every metric with its interval.

    ``zero_length`` is how many of the queries have a window shorter than a frame; they count.
    """
    groups: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((-row["ratio"], row["way"]), []).append(row)
    lines = []
    for (ratio, way), group in sorted(groups.items()):
        lines.append({
            "way": way, "ratio": -ratio, "queries": len(group),
            "zero_length": sum(bool(row["zero_length"]) for row in group),
            "source_tokens": sum(row["source_tokens"] for row in group) / len(group),
            "kept_tokens": sum(row["kept_tokens"] for row in group) / len(group),
            **{name: mean_interval([row[name] for row in group]) for name in METRICS},
        })
    lines.append({
        "way": "chance", "ratio": 0.0, "queries": len(guessed[METRICS[0]]), "source_tokens": 0.0,
        "kept_tokens": 0.0, **{name: mean_interval(guessed[name]) for name in METRICS},
    })
    return lines


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """The comparison as a Markdown table."""
    head = ["features", "queries", "N", "K", *METRICS]
    out = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for line in table:
        name = line["way"]
        if name != "chance":
            name = "all" if line["ratio"] == 1 else f"{name}, {1 / line['ratio']:.2g}x"
        cells = [name, str(line["queries"])]
        sizes = (line["source_tokens"], line["kept_tokens"])
        cells += [f"{size:.0f}" if size else "" for size in sizes]
        cells += [
            f"{line[m]['mean']:.3f} ({line[m]['low']:.3f}-{line[m]['high']:.3f})" for m in METRICS
        ]
        out.append(f"| {' | '.join(cells)} |")
    short = max((line.get("zero_length", 0) for line in table), default=0)
    if short:
        out += ["", f"{short} of the queries have a window shorter than a frame. They are counted; "
                    "at length 0 only the same window scores on one."]
    return "\n".join(out) + "\n"
