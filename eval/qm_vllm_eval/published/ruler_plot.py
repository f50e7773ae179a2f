"""The picture of RULER's tables: ``python -m qm_vllm_eval.published.ruler_plot``."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from qm_vllm_eval.published import ruler
from qm_vllm_eval.study.plot_style import INK, LINE, OWN_COLOURS, PAPER, SOFT, Style, styles
from qm_vllm_eval.study.plots import MIB, SETTINGS

TITLES = {
    "visible": "question visible to the compressor", "blind": "question hidden from the compressor",
}
FILE = "ruler.png"


def draw(file: Path | None = None) -> Path:
    """Write the picture, by default beside the table of the visible study. Returns its path.

    Raises:
        Unknown: a study is missing.
    """
    found = {mode: ruler.runs(mode) for mode in ruler.FOLDERS}
    names = [name for own in found.values() for name, _ in ruler.methods(own)]
    held = {mode: _joined(own) for mode, own in found.items()}
    looks = _looks(list(dict.fromkeys(names)))
    file = file or ruler.STUDIES / ruler.FOLDERS["visible"] / FILE
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(9.6, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(held), sharey=True, squeeze=False)[0]
        for axes, (mode, own) in zip(panels, held.items(), strict=True):
            _panel(axes, TITLES[mode], own, looks)
        panels[0].set_ylabel("mean score of RULER's 13 tasks, %")
        panels[0].set_ylim(bottom=0)
        figure.supxlabel("KV cache per prompt, MiB (logarithmic)", fontsize=10)
        lines = {
            str(line.get_label()): line
            for axes in panels for line in axes.get_lines()
            if not str(line.get_label()).startswith("_")
        }
        ordered = [lines[name] for name in ("full prompt", *looks) if name in lines]
        figure.legend(handles=ordered, loc="outside right upper", frameon=False, handlelength=2.6)
        figure.savefig(file, format="png", dpi=120)
    return file


def _joined(found: list[ruler.Cells]) -> ruler.Cells:
    """All runs of a study, the bytes of later ones as the first's type would need."""
    first, joined = ruler.mean(found[0][ruler.PLAIN, 1.0], "kv_bytes"), dict(found[0])
    for later in found[1:]:
        factor = first / ruler.mean(later[ruler.PLAIN, 1.0], "kv_bytes")
        joined |= {
            (method, ratio): {
                task: dataclasses.replace(cell, kv_bytes=cell.kv_bytes * factor)
                for task, cell in own.items()
            }
            for (method, ratio), own in later.items() if method not in ruler.REFERENCES
        }
    return joined


def _looks(names: list[str]) -> dict[str, Style]:
    """Markers differ as well as colours; the plug-in's methods are filled and thicker."""
    chosen = styles(names)
    for name, colour in zip(ruler.FIRST, OWN_COLOURS, strict=False):
        if name in chosen:
            chosen[name] = dataclasses.replace(
                chosen[name], own=True, colour=colour, width=2.2, size=5.5
            )
    return {name: chosen[name] for name in names}


def _panel(axes: Any, title: str, held: ruler.Cells, looks: dict[str, Style]) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", pad=4)
    axes.grid(True, color=LINE, linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    size, score = _point(held[ruler.PLAIN, 1.0])
    axes.axhline(score, color=SOFT, linewidth=0.9)
    axes.plot([size], [score], marker="*", color=INK, markersize=9, linestyle="none",
              markeredgewidth=0, label="full prompt", zorder=4)
    ticks = [size]
    for name, look in looks.items():
        points = sorted(
            point for (method, _), own in held.items() if method == name
            and not math.isnan((point := _point(own))[1])
        )
        if not points:
            continue
        ticks += [point[0] for point in points]
        axes.plot(*zip(*points, strict=True), label=name, color=look.colour, marker=look.marker,
                  linestyle=look.line, linewidth=look.width, markersize=look.size,
                  markerfacecolor=look.colour if look.own else PAPER, zorder=3 if look.own else 2)
    axes.set_xscale("log", base=2)
    low, high = (math.log2(end) for end in (min(ticks), max(ticks)))
    powers = range(math.ceil(low - 0.4), math.floor(high + 0.4) + 1)
    axes.set_xlim(2 ** (low - 0.4), 2 ** (high + 0.4))
    axes.set_xticks([2.0**power for power in powers])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:.3g}"))


def _point(own: dict[str, ruler.Cell]) -> tuple[float, float]:
    """MiB and per cent, means over the tasks."""
    return ruler.mean(own, "kv_bytes") / MIB, 100 * ruler.mean(own)


if __name__ == "__main__":
    print(draw())
