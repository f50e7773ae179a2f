"""Tables of what KV heads gain by tokens of their own, from the files of scripts/head_choice.py."""

from __future__ import annotations

import csv

from qm_vllm_eval.metrics import bootstrap_retention, retention
from qm_vllm_eval.published.form import Row, Unknown, figure, markdown
from qm_vllm_eval.published.stored import STUDIES

METHODS = {
    "quickmerge": "in the model", "native-one-choice": "one choice for all",
    "native-equal-layers": "heads' own", "native": "layers, too",
    "native-expected": "own by expected attention",
    "kvpress-expected-attention": "ExpectedAttention", "kvpress-snapkv": "SnapKV",
    "kvpress-pyramidkv": "PyramidKV", "kvpress-keydiff": "KeyDiff",
    "kvpress-compactor": "Compactor", "kvpress-kvzip-global": "KVzip",
}
"""Methods of the bench, and what a page calls them."""
OURS = "native"
RATIOS = {"1/4": "0.25", "1/8": "0.125"}
Losses = dict[tuple[str, str, str], dict[str, float]]
"""By task, method and ratio: the NLL of each sample."""


def table(model: str, ratio: str) -> str:
    """Retention by task at one ratio, and the interval of what the plug-in does.

    Args:
        model: the file's name in ``eval/results/heads`` without its suffix, ``-blind`` where the
            question is hidden. ratio: 1/4 or 1/8.
    """
    if ratio not in RATIOS:
        raise Unknown(f"no ratio '{ratio}'; there are {', '.join(RATIOS)}")
    losses = _losses(model)
    lines, cut = [], dict[str, list[float]]()
    for task in dict.fromkeys(task for task, *_ in losses):
        line: Row = {"task": task, "samples": len(losses[task, "none", "0.0"])}
        for method, label in METHODS.items():
            own = losses.get((task, method, RATIOS[ratio]))
            if own is not None:
                share, line[label] = _cell(losses, task, own, interval=method == OURS)
                cut.setdefault(label, []).append(min(1.0, share))
        lines.append(line)
    means = {label: figure(sum(values) / len(values)) for label, values in cut.items()}
    return markdown([*lines, {"task": "mean, each cut at 1", "samples": "", **means}])


def _cell(
    losses: Losses, task: str, own: dict[str, float], *, interval: bool
) -> tuple[float, str]:
    """Retention, and what the table says."""
    none, plain = losses[task, "none", "0.0"], losses[task, "plain", "1.0"]
    three = [[each[index] for index in none] for each in (none, own, plain)]
    share = retention(*three)
    if not interval:
        return share, figure(share)
    low, high = bootstrap_retention(*three)
    return share, f"{figure(share)} [{figure(low)}, {figure(high)}]"


def _losses(model: str) -> Losses:
    path = STUDIES / "heads" / f"{model}.csv"
    if not path.exists():
        raise Unknown(f"no file '{path.name}' in {path.parent}")
    losses: Losses = {}
    with path.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            own = losses.setdefault((row["task"], row["method"], row["ratio"]), {})
            own[row["index"]] = float(row["nll"])
    return losses
