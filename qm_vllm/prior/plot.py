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
    losses = [entry["heldout_l_ar"] for entry in history]
    low, high = min(*losses, history[-1]["mean_state"]), max(*losses, history[-1]["mean_state"])
    room = 0.15 * (high - low) or 0.1
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(seconds, losses, "o-", color="#1f5fa8", ms=4, label="prior, both directions")
    for name, label, colour in (
        ("mean_state", "mean state", "#888888"), ("copy_last", "copy of the last state", "#b5651d")
    ):
        value = history[-1][name]
        if low - 2 * room <= value <= high + 2 * room:
            axes.axhline(value, color=colour, ls="--", lw=1.2, label=f"{label}: {value:.3f}")
        else:
            place = "above" if value > high else "below"
            axes.plot([], [], " ", label=f"{label}: {value:.3f} ({place} the picture)")
    axes.annotate(f"{losses[-1]:.3f}", (seconds[-1], losses[-1]), xytext=(0, 7),
                  textcoords="offset points", ha="right", color="#1f5fa8")
    axes.set(xlabel="seconds of training", ylabel="held-out L_AR\n(variance of the states = 1 + 1)",
             title=title, ylim=(low - 2 * room, high + 2 * room))
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left", frameon=False)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)
