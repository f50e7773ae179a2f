"""Colours, markers and lines of the methods: the same in every panel of every figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qm_vllm_eval.study.results import NONE, PLAIN, method_order

INK, SOFT, LINE, PAPER = "#1d1d1b", "#575752", "#d9d8d2", "#fdfdfb"
"""Text, axes, grid, background. The HTML page replaces them by those of its scheme."""

LEAD = "quickmerge"
"""The method that a reader looks for first: the thickest line, with its interval as a band."""
OWN_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#b8860b", "#a0408f")
"""Of quickmerge's methods: saturated, told apart with any colour vision (after Okabe and Ito)."""
OWN_MARKERS = ("o", "s", "D", "^", "v")
PEER_COLOURS = (
    "#6a9fd4", "#cc6677", "#44aa99", "#999933", "#8c7fb8", "#c98b5a", "#7a8794",
)
"""Of the others: muted (after Tol), legible on a light and on a dark ground."""
PEER_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d", "*")
PEER_LINES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))


@dataclass(frozen=True)
class Style:
    """How a method is drawn.

    Widths and sizes are in points, ``line`` is a line style of matplotlib, ``own`` marks
    quickmerge's methods, and ``lead`` the one among them that is the default.
    """

    colour: str
    marker: str
    line: Any
    width: float
    size: float
    own: bool
    lead: bool = False


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """A style for each method but the references. No two are equal for up to 364 peers."""
    chosen: dict[str, Style] = {}
    own = peers = 0
    for name in method_order(methods):
        if name in (NONE, PLAIN):
            continue
        if name.startswith("quickmerge"):
            lead = name == LEAD
            chosen[name] = Style(
                OWN_COLOURS[own % len(OWN_COLOURS)],
                OWN_MARKERS[(own + own // len(OWN_COLOURS)) % len(OWN_MARKERS)],
                PEER_LINES[own // len(OWN_COLOURS) % len(PEER_LINES)],
                2.8 if lead else 1.7, 6.0 if lead else 4.8, True, lead,
            )
            own += 1
        else:
            chosen[name] = Style(
                PEER_COLOURS[peers % len(PEER_COLOURS)],
                PEER_MARKERS[peers % len(PEER_MARKERS)],
                PEER_LINES[peers // len(PEER_COLOURS) % len(PEER_LINES)],
                1.1, 4.2, False,
            )
            peers += 1
    return chosen
