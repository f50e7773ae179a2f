"""summary.json and report.md of a run."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qm_vllm_eval.metrics import bootstrap_mean
from qm_vllm_eval.ray.table import OK

COSTS = ("source_tokens", "kept_tokens", "kv_blocks", "kv_bytes", "answer_tokens", "seconds")


def summarise(
    rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], facts: Mapping[str, Any],
    meta: Mapping[str, Any], flags: Sequence[str] = (),
) -> dict[str, Any]:
    """Means by ratio (and way, where rows have one) with 95 % bootstrap intervals over the rows,
    failures by kind, flagged rows by flag, the run.

    Args:
        rows: of the table. metrics: columns to average. facts: of the task. meta: of the run.
        flags: columns that are true for rows to be told of.
    """
    groups = sorted({(-row["ratio"], row.get("way") or "") for row in rows})
    failed = [row for row in rows if row["status"] != OK]
    return {
        "rows": len(rows),
        "failed": len(failed),
        "failures": dict(Counter(row["failure"] for row in failed)),
        "flagged": {flag: _flagged(flag, rows) for flag in flags},
        "ratios": [_ratio(-ratio, way, rows, metrics) for ratio, way in groups],
        "task": dict(facts),
        "run": dict(meta),
    }


def _flagged(flag: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    held = [row["row_id"] for row in rows if row.get(flag)]
    return {"rows": len(held), "row_ids": list(dict.fromkeys(held))}


def _ratio(
    ratio: float, way: str, rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, Any]:
    held = [row for row in rows if row["ratio"] == ratio and (row.get("way") or "") == way]
    good = [row for row in held if row["status"] == OK]
    return {
        "ratio": ratio,
        **({"way": way} if way else {}),
        "rows": len(good),
        "failed": len(held) - len(good),
        "compressed": sum(row["plugin"] == "compressed" for row in good),
        "metrics": {name: _interval([row[name] for row in good]) for name in metrics},
        "means": {name: _mean([row[name] for row in good]) for name in COSTS},
    }


def _interval(values: Sequence[float]) -> dict[str, float | None]:
    low, high = bootstrap_mean(values)
    return {"mean": _mean(values), "low": _number(low), "high": _number(high)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else None


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def markdown(summary: Mapping[str, Any], failed: Sequence[Mapping[str, Any]]) -> str:
    """The report: ratios against quality and memory, failures, scaling, how it was run.

    Args:
        summary: of :func:`summarise`, with "scaling" if that was measured.
        failed: rows with a reason.
    """
    run, task = summary["run"], summary["task"]
    names = list(summary["ratios"][0]["metrics"]) if summary["ratios"] else []
    lines = [f"# {run['task']}: {summary['rows']} rows, {summary['failed']} failed", ""]
    lines += _table(
        ["ratio", "rows", *names, "N", "K", "KV MiB", "s"],
        [[f"{part['ratio']:g} {part.get('way', '')}".strip(), str(part["rows"]),
          *(_spread(part["metrics"][n]) for n in names),
          _figure(part["means"]["source_tokens"], 0), _figure(part["means"]["kept_tokens"], 0),
          _figure(part["means"]["kv_bytes"], 2, 2**20), _figure(part["means"]["seconds"], 2)]
         for part in summary["ratios"]],
    )
    lines += ["", "Means over rows, [95 % bootstrap interval]. N: tokens of the prompt; K: kept; "
              "s: seconds of a row in its engine.", ""]
    for flag, told in summary["flagged"].items():
        if told["rows"]:
            lines += [f"{told['rows']} of the rows are counted though flagged as {flag}: "
                      f"{_some(told['row_ids'])}.", ""]
    if summary.get("scaling"):
        lines += ["## Scaling", ""]
        lines += _table(
            ["replicas", "rows", "seconds", "rows/s", "efficiency"],
            [[str(part["replicas"]), str(part["rows"]), f"{part['seconds']:.1f}",
              f"{part['rows_per_s']:.3f}", f"{part['efficiency']:.0%}"]
             for part in summary["scaling"]],
        )
        lines += ["", "From the first row's start to the last row's end; engines had started. "
                  "Efficiency: rows/s over the smallest run's, per replica.", ""]
    if failed:
        lines += ["## Failed rows", ""]
        lines += _table(["row", "ratio", "kind", "reason"],
                        [[row["row_id"], f"{row['ratio']:g}", row["failure"],
                          " ".join(str(row["reason"]).split())[:200].replace("|", "\\|")]
                         for row in failed[:50]])
        if len(failed) > 50:
            lines.append(f"\nand {len(failed) - 50} more, in rows.parquet")
        lines.append("")
    lines += ["## Run", "", f"`{run['command']}`", ""]
    lines += [f"- {name}: {_plain(run[name])}" for name in run if name not in ("command", "task")]
    lines += [f"- {name}: {_plain(value)}" for name, value in task.items()]
    return "\n".join(lines) + "\n"


def write(summary: Mapping[str, Any], text: str, folder: Path) -> list[Path]:
    """Write summary.json and report.md, each under its name only when complete."""
    files = {"summary.json": json.dumps(summary, indent=2, ensure_ascii=False) + "\n",
             "report.md": text}
    if summary.get("scaling"):
        files["scaling.json"] = json.dumps(summary["scaling"], indent=2) + "\n"
    for name, content in files.items():
        work = folder / f".{name}-{os.getpid()}"
        work.write_text(content, encoding="utf-8")
        os.replace(work, folder / name)
    return [folder / name for name in files]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] * len(head)
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *body)]


def _spread(held: Mapping[str, float | None]) -> str:
    if held["mean"] is None:
        return "-"
    return f"{held['mean']:.4f} [{held['low']:.4f}, {held['high']:.4f}]"


def _figure(value: float | None, digits: int, unit: float = 1.0) -> str:
    return "-" if value is None else f"{value / unit:,.{digits}f}"


def _some(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return str(value)
