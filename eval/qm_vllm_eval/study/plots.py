"""Pareto plots of a study: quality against KV bytes, a panel per family."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from qm_vllm_eval.study.plot_style import INK, LINE, PAPER, SOFT, Style, styles
from qm_vllm_eval.study.results import NONE, PLAIN

MIB = 2.0**20
BOTTOM, TOP = -0.5, 1.3
"""What of the retention is shown; points beyond are drawn as arrows at the edge."""
SETTINGS: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "qm-vllm", "font.size": 9.0,
    "font.family": "sans-serif", "text.color": INK, "axes.edgecolor": SOFT,
    "axes.labelcolor": INK, "xtick.color": SOFT, "ytick.color": SOFT,
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER,
}
LEFT = 0.8
"""Inches left of the panels."""
QUALITIES = {
    "retention": "retention (0: no context, 1: all of it)",
    "match": "match (score of the answers)",
}


@dataclass(frozen=True)
class Picture:
    """One figure in both formats.

    Attributes:
        name: stem of its files. quality: "retention" or "match".
        length: tokens of the prompts. query_visible: the query mode.
    """

    name: str
    title: str
    quality: str
    length: int
    query_visible: bool
    png: bytes
    svg: str


def draw_all(families: pd.DataFrame) -> list[Picture]:
    """A picture per length, query mode and quality, from the table of families.

    A quality that no family has a figure of is left out, so the list may be empty.
    """
    looks = styles(list(families["method"]))
    pictures = []
    for quality in QUALITIES:
        for (length, visible), part in families.groupby(["length", "query_visible"], sort=True):
            shown = part[part[quality].notna() & (part["kv_bytes"] > 0)]
            if not (set(shown["method"]) - {NONE, PLAIN}):
                continue
            with matplotlib.rc_context(SETTINGS):
                figure = _figure(part, quality, int(length), bool(visible), looks)
                png, svg = _save(figure)
            mode = "visible" if visible else "blind"
            pictures.append(
                Picture(f"{quality}-{length}-{mode}", heading(quality, int(length), bool(visible)),
                        quality, int(length), bool(visible), png, svg)
            )
    return pictures


def write_pictures(pictures: list[Picture], folder: Path) -> list[Path]:
    """Write each picture as PNG and SVG. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for picture in pictures:
        png, svg = folder / f"{picture.name}.png", folder / f"{picture.name}.svg"
        png.write_bytes(picture.png)
        svg.write_text(picture.svg, encoding="utf-8")
        paths += [png, svg]
    return paths


def heading(quality: str, length: int, visible: bool) -> str:
    """Title of a figure or a table."""
    mode = "visible to" if visible else "hidden from"
    place = f"at {length:,} prompt tokens" if length else "on your own prompts"
    return f"{quality.capitalize()} {place}, question {mode} the compressor"


def _figure(
    part: pd.DataFrame, quality: str, length: int, visible: bool, looks: dict[str, Style]
) -> Figure:
    scored = part[part[quality].notna() & (part["kv_bytes"] > 0) & (part["method"] != NONE)]
    families = sorted(set(scored["family"]))
    drawn = [name for name in looks if name in set(scored["method"])]
    columns = min(3, len(families))
    lines = math.ceil(len(families) / columns)
    legend_inches = 0.9 + 0.085 * max(len(name) for name in drawn)
    width, height = 0.85 + 3.9 * columns + legend_inches, max(
        1.15 + 2.75 * lines, 1.6 + 0.215 * (len(drawn) + 4)
    )
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    title = heading(quality, length, visible)
    if columns == 1:
        title = title.replace(" tokens, ", " tokens,\n")
    figure.suptitle(title, x=LEFT / width, y=1 - 0.14 / height,
                    ha="left", va="top", fontsize=13 if columns > 1 else 11, fontweight="bold")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    figure.subplots_adjust(
        left=LEFT / width, right=1 - legend_inches / width, top=1 - 0.75 / height,
        bottom=0.6 / height, wspace=0.08, hspace=0.24,
    )
    spread = _spread(drawn)
    for place, axes in enumerate(grid.flat):
        if place >= len(families):
            axes.set_axis_off()
            continue
        family = families[place]
        _panel(axes, scored[scored["family"] == family], family, quality, looks, spread)
        axes.tick_params(labelbottom=place + columns >= len(families))
    _frame(grid.flat[0], scored, quality)
    _legend(figure, drawn, looks, scored, quality, legend_inches)
    right = 1 - legend_inches / width
    figure.supxlabel("KV cache per prompt, MiB (logarithmic)", x=(LEFT / width + right) / 2,
                     y=0.1 / height, fontsize=10)
    figure.supylabel(QUALITIES[quality], x=0.12 / width, y=0.5 - 0.075 / height, fontsize=10)
    return figure


def _frame(axes: Any, scored: pd.DataFrame, quality: str) -> None:
    """Limits and ticks, which all panels share."""
    sizes = scored["kv_bytes"] / MIB
    low, high = math.log2(sizes.min()), math.log2(sizes.max())
    axes.set_xscale("log", base=2)
    axes.set_xlim(2 ** (low - 0.4), 2 ** (high + 0.4))
    step = max(1, math.ceil((high - low + 0.8) / 7))
    axes.set_xticks([2.0**power for power in range(math.ceil(low - 0.4), math.floor(high + 0.4) + 1,
                                                   step)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}" if size >= 0.1
                                                 else f"{size:.2g}"))
    if quality == "retention":
        axes.set_ylim(BOTTOM, TOP)
        axes.set_yticks([-0.5, 0, 0.5, 1])
    else:
        axes.set_ylim(-0.04, max(0.2, scored[quality].max()) * 1.06)
        axes.yaxis.set_major_locator(MaxNLocator(5))


def _panel(
    axes: Any, part: pd.DataFrame, family: str, quality: str, looks: dict[str, Style],
    spread: dict[str, float],
) -> None:
    axes.set_title(family, loc="left", fontsize=10.5, fontweight="bold", pad=4)
    axes.grid(True, color=LINE, linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    plain = part[part["method"] == PLAIN]
    if quality == "retention":
        axes.axhline(0, color=SOFT, linewidth=0.9)
        axes.axhline(1, color=SOFT, linewidth=0.9)
    elif len(plain):
        axes.axhline(float(plain[quality].iloc[0]), color=SOFT, linewidth=0.9)
    if len(plain):
        axes.plot(plain["kv_bytes"] / MIB, plain[quality], marker="*", color=INK, markersize=9,
                  linestyle="none", zorder=4, markeredgewidth=0)
    for name in sorted(looks, key=lambda name: looks[name].own):
        own = part[part["method"] == name].sort_values("kv_bytes")
        if len(own):
            _method(axes, own, quality, looks[name], spread.get(name, 1.0))


def _method(axes: Any, own: pd.DataFrame, quality: str, look: Style, factor: float) -> None:
    """Line, points and interval of one method; ``factor`` shifts its whiskers sideways."""
    x = (own["kv_bytes"] / MIB).to_numpy(dtype=float)
    y = own[quality].to_numpy(dtype=float)
    order = 3.5 + look.lead if look.own else 2.5
    axes.plot(x, y, color=look.colour, linewidth=look.width, linestyle=look.line, zorder=order,
              alpha=1.0 if look.own else 0.9)
    if quality == "retention":
        low, high = own["retention_lo"].to_numpy(float), own["retention_hi"].to_numpy(float)
        if look.lead and len(x) > 1:
            axes.fill_between(x, np.clip(low, BOTTOM, TOP), np.clip(high, BOTTOM, TOP),
                              color=look.colour, alpha=0.13, linewidth=0, zorder=1.2)
        else:
            axes.vlines(x * factor, low, high, color=look.colour, linewidth=0.8,
                        alpha=0.5 if look.own else 0.3, zorder=1.5)
    beyond = (y > TOP) | (y < BOTTOM) if quality == "retention" else np.zeros(len(y), bool)
    face = look.colour if look.own else PAPER
    axes.plot(x[~beyond], y[~beyond], linestyle="none", marker=look.marker, color=look.colour,
              markersize=look.size, markerfacecolor=face,
              markeredgecolor=PAPER if look.own else look.colour,
              markeredgewidth=0.7 if look.own else 1.0, zorder=order + 0.2)
    for over, sign, edge in ((y > TOP, "^", TOP), (y < BOTTOM, "v", BOTTOM)):
        if (beyond & over).any():
            axes.plot(x[over], np.full(int(over.sum()), edge), linestyle="none", marker=sign,
                      color=look.colour, markersize=look.size + 1.5, clip_on=False,
                      markeredgewidth=0, zorder=order + 0.4)


def _spread(drawn: list[str]) -> dict[str, float]:
    """Factors on x, at most 6 % either way, that keep the whiskers of methods apart."""
    steps = np.linspace(-1, 1, len(drawn)) if len(drawn) > 1 else [0.0]
    return {name: float(1.06**step) for name, step in zip(drawn, steps, strict=True)}


def _legend(
    figure: Figure, drawn: list[str], looks: dict[str, Style], scored: pd.DataFrame, quality: str,
    inches: float,
) -> None:
    """The legend, right of the panels, ``inches`` wide, and how to read the intervals."""
    width, height = figure.get_size_inches()
    handles: list[Line2D] = []
    if PLAIN in set(scored["method"]):
        handles.append(Line2D([], [], color=INK, marker="*", markersize=9, linestyle="none",
                              markeredgewidth=0, label="plain: all KV"))
    for name in drawn:
        look = looks[name]
        handles.append(
            Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.line,
                   linewidth=look.width, markersize=look.size,
                   markerfacecolor=look.colour if look.own else PAPER,
                   markeredgecolor=PAPER if look.own else look.colour,
                   markeredgewidth=0.7 if look.own else 1.0, label=name)
        )
    if quality == "retention" and not scored[quality].between(BOTTOM, TOP).all():
        handles.append(Line2D([], [], color=SOFT, marker="v", markersize=6, linestyle="none",
                              markeredgewidth=0, label="beyond the scale"))
    made = figure.legend(
        handles=handles, loc="upper left", frameon=False, fontsize=9, handlelength=2.6,
        bbox_to_anchor=(1 - (inches - 0.12) / width, 1 - 0.68 / height), borderaxespad=0,
        labelspacing=0.55,
    )
    for text in made.get_texts():
        if text.get_text() in looks and looks[text.get_text()].own:
            text.set_fontweight("bold")
    if quality == "retention":
        note = "Bands and whiskers:\n95 % intervals; whiskers\nare set apart sideways."
        figure.text(1 - (inches - 0.12) / width, 0.6 / height, note, fontsize=8, color=SOFT,
                    va="bottom")


def _save(figure: Figure) -> tuple[bytes, str]:
    image, drawing = io.BytesIO(), io.StringIO()
    figure.savefig(image, format="png", dpi=150)
    figure.savefig(drawing, format="svg", metadata={"Date": None, "Creator": None})
    return image.getvalue(), drawing.getvalue()


def inline_svg(picture: Picture) -> str:
    """The picture as an ``<svg>`` element for an HTML page, in the page's own colours.

    Names inside are made unique to the picture; name spaces and metadata are dropped, so that no
    address is left. Colours of text, axes and ground become the variables --ink, --soft, --line
    and --page.
    """
    svg = picture.svg[picture.svg.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{picture.name}-", svg)
    svg = re.sub(r'\s(?:d|x|y|transform)="[^"]*"', _rounded, svg)
    for colour, name in ((INK, "ink"), (SOFT, "soft"), (LINE, "line"), (PAPER, "page")):
        svg = svg.replace(colour, f"var(--{name})")
    label = picture.title.replace('"', "&quot;")
    size = re.compile(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>')
    return size.sub(rf'<svg viewBox="\1" role="img" aria-label="{label}">', svg, count=1)


def _rounded(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point: half the size of the page."""
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute.group(0))
