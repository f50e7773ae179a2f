"""The loss of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def loss_plot(history: Sequence[dict[str, Any]], target: Path, title: str) -> None:
    """Held-out L_AR against seconds, with the two trivial predictors as lines.

    Args:
        history: entries of :func:`qm_vllm.prior.evaluate.heldout`, with "seconds".
        target: PNG file to write.
        title: above the axes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seconds = [entry["seconds"] for entry in history]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(seconds, [e["heldout_l_ar"] for e in history], "o-", color="#1f5fa8", ms=4,
              label="prior, both directions")
    for name, label, colour in (
        ("mean_state", "mean state", "#888888"), ("copy_last", "copy of the last state", "#b5651d")
    ):
        value = history[-1][name]
        axes.axhline(value, color=colour, ls="--", lw=1.2)
        axes.annotate(f"{label}: {value:.2f}", (1, value), xycoords=("axes fraction", "data"),
                      xytext=(-4, 3), textcoords="offset points", ha="right", color=colour)
    last = history[-1]
    axes.annotate(f"{last['heldout_l_ar']:.2f}", (last["seconds"], last["heldout_l_ar"]),
                  xytext=(0, 7), textcoords="offset points", ha="center", color="#1f5fa8")
    axes.set(xlabel="seconds of training", ylabel="held-out L_AR\n(variance of the states = 1 + 1)",
             title=title, ylim=(0, None))
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left", frameon=False)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)
