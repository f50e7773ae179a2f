"""Pictures of the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qm_vllm_eval.baselines import CONTROLS
from qm_vllm_eval.paper.tables import BETTER, LEAD, METRICS
from qm_vllm_eval.study.plot_style import INK, LINE, OWN_COLOURS, PAPER, PEER_COLOURS, SOFT

Rows = Sequence[Mapping[str, Any]]
NAMES = {"ppl": "perplexity per source token", "accuracy": "accuracy (%)",
         "fvd": "Fréchet distance"}


def draw(folder: Path, held: Mapping[int, Rows]) -> list[Path]:
    """Pictures of Tables 1 to 3, as far as they have rows: ``tableN.png`` in a folder."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for number, work in {1: _quality, 2: _ablations, 3: _costs}.items():
        if held.get(number):
            figure = work(held[number])
            target = folder / f"table{number}.png"
            figure.savefig(target, dpi=110, facecolor=PAPER, bbox_inches="tight")
            drawn.append(target)
            import matplotlib.pyplot as plt

            plt.close(figure)
    return drawn


def _quality(rows: Rows) -> Any:
    """One panel a task: the metric over N / K, with the deviation over the seeds."""
    shown = [metric for metric in METRICS.values() if any(r[metric] is not None for r in rows)]
    figure, panels = _panels(len(shown))
    tasks = {metric: task for task, metric in METRICS.items()}
    for panel, metric in zip(panels, shown, strict=True):
        for place, row in enumerate(rows):
            if row[metric] is None:
                continue
            if row["method"] == "no context":
                # Far from all others: as a line it would press them together.
                panel.text(1, 0.01, f"no context: {row[metric]:.1f}", color=SOFT, fontsize=8,
                           transform=panel.transAxes, ha="right", va="bottom")
                continue
            lead, control = row["method"] == LEAD, row["method"] in CONTROLS
            panel.errorbar(
                row[f"rate_{tasks[metric]}"], row[metric], yerr=row[f"{metric}_std"],
                label=row["method"], capsize=3, markersize=8 if lead else 6,
                fmt="o" if lead else ("x" if control else "s"),
                color=OWN_COLOURS[0] if lead else PEER_COLOURS[place % len(PEER_COLOURS)],
            )
        panel.set_xlabel("N / K")
        better = "higher" if BETTER[metric] > 0 else "lower"
        panel.set_title(f"{NAMES[metric]} ({better} is better)", fontsize=10)
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _ablations(rows: Rows) -> Any:
    """Change of each metric without a part, in the direction that is worse, in per cent."""
    shown = [metric for metric in METRICS.values() if any(r[metric] is not None for r in rows)]
    figure, panels = _panels(len(shown))
    parts = [row for row in rows if row["method"] != LEAD]
    full = next(row for row in rows if row["method"] == LEAD)
    for panel, metric in zip(panels, shown, strict=True):
        measured = [_worse(row.get(f"{metric}_change"), full[metric], metric) for row in parts]
        paper = [
            _worse(row[key] - full[key], full[key], metric)
            for row in parts for key in (f"paper_{metric}",)
        ]
        places = range(len(parts))
        panel.bar([p - 0.2 for p in places], measured, 0.38, color=OWN_COLOURS[0], label="measured")
        panel.bar([p + 0.2 for p in places], paper, 0.38, color=PEER_COLOURS[0], label="paper")
        panel.axhline(0, color=INK, linewidth=0.8)
        panel.set_xticks(list(places), [row["method"].removeprefix("- ") for row in parts],
                         fontsize=8)
        panel.set_title(f"{NAMES[metric]}: worse by (%)", fontsize=10)
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _costs(rows: Rows) -> Any:
    """Baseline and QuickMerge++ side by side for each shape."""
    columns = {"latency_ms": "latency of a decoded token (ms)", "ttft_ms": "TTFT (ms)",
               "kv_mb": "KV memory (MB)"}
    columns = {name: title for name, title in columns.items() if any(r.get(name) for r in rows)}
    figure, panels = _panels(len(columns))
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    for panel, (column, title) in zip(panels, columns.items(), strict=True):
        for side, (method, colour) in enumerate(
            (("baseline", PEER_COLOURS[0]), ("quickmerge", OWN_COLOURS[0]))
        ):
            values = {r["shape"]: r.get(column) or 0 for r in rows if r["method"] == method}
            panel.bar([i + 0.4 * side - 0.2 for i in range(len(shapes))],
                      [values.get(shape, 0) for shape in shapes], 0.38, color=colour, label=method)
        panel.set_xticks(range(len(shapes)), shapes, fontsize=8)
        panel.set_yscale("log")
        panel.set_title(title, fontsize=10)
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _worse(change: float | None, base: float, metric: str) -> float:
    return 0.0 if change is None or not base else -100 * BETTER[metric] * change / base


def _panels(count: int) -> tuple[Any, list[Any]]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, count, figsize=(4.6 * count, 4.4), squeeze=False, layout="constrained"
    )
    for panel in axes[0]:
        panel.set_facecolor(PAPER)
        panel.grid(True, color=LINE, linewidth=0.6)
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    return figure, list(axes[0])
