"""Table 4 of the paper: BookSum and Ego4D NLQ, all tokens against QuickMerge++ at 1/2.4 of them.

The rows are those of ``qm-vllm eval booksum`` and ``qm-vllm eval ego4d-nlq``, each in a process of
its own with one engine and without Ray; both go on where they were stopped. Nothing of the served
model is trained for the merge; the prior of Ego4D reads whole and merged clips while it is
trained. Qualities are in per cent, as the paper prints them. The paper's "mAP@0.5" is set beside
the average precision at IoU 0.5 of a query's five windows; the challenge's own metric, R@1 at IoU
0.3, has no figure in the paper. Ego4D also runs with merges around random tokens, which says what
the choice of tokens is worth.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qm_vllm_eval.datasets.catalogue import open_published
from qm_vllm_eval.datasets.rows import DataSetError
from qm_vllm_eval.localisation import AVERAGE_PRECISION
from qm_vllm_eval.paper.scale import Scale

Say = Callable[[str], None]
RATIO = 1 / 2.4
BOOKSUM, EGO4D = "BookSum", "Ego4D-NLQ"
RANDOM = f"{EGO4D}, random tokens"
"""Not a row of the paper: the same merge around tokens drawn at random."""
RECALL = "R@1 IoU>0.3"
MICRO, SYNTHETIC = "micro set of this project", "synthetic"
NOT_RUN = "not run at this scale"
MOST_REASON = 400
"""Characters of a reason."""


@dataclass(frozen=True)
class Table4Data:
    """Data that the user has; None: what comes with the project, at the scale full a reason.

    Attributes:
        booksum: file, folder or name on the hub. ego4d: folder with nlq_train.json and
            nlq_val.json. features: of Ego4D, where they are not in ``features/`` there.
        model: that summarises, folder or name; None: the embedded SmolLM2.
        train_minutes: of Ego4D's prior at the scale full.
    """

    booksum: str | None = None
    ego4d: str | None = None
    features: str | None = None
    model: str | None = None
    train_minutes: float = 60.0


@dataclass(frozen=True)
class Measure:
    """One line of the paper's table.

    Attributes:
        metric: as the table prints it. column: in summary.json.
        paper: quality of the baseline and of QuickMerge++. tokens: the same of the token counts.
    """

    metric: str
    column: str
    paper: tuple[float | None, float | None] = (None, None)
    tokens: tuple[float | None, float | None] = (None, None)


ROUGE = Measure("ROUGE-L", "rougeL", (36.2, 37.1), (4096, 1682))
PRECISION = Measure("AP@0.5", AVERAGE_PRECISION, (38.6, 40.3), (2048, 821))
WINDOWS = (PRECISION, Measure("R@1 IoU 0.3", RECALL, tokens=PRECISION.tokens))
GUESSED = (Measure("AP@0.5", AVERAGE_PRECISION), Measure("R@1 IoU 0.3", RECALL))


def rows(
    scale: Scale, out: Path, data: Table4Data, say: Say = lambda line: None
) -> list[dict[str, Any]]:
    """The table's rows: BookSum, two metrics of Ego4D, and the same two with random tokens.

    Args:
        scale: smoke runs Ego4D alone, a few queries of a prior that has learned nothing; full
            reads the data that the user names.
        out: the commands' folders ``booksum`` and ``ego4d`` and their logs are made in it.
        say: is told what runs next.

    Returns:
        flat dicts with the same keys: task, metric; baseline and quickmerge, each with _low and
        _high (95 % bootstrap interval over the rows), and difference, all in per cent;
        tokens_baseline, tokens_quickmerge (means), change_tokens in per cent; rows (of
        QuickMerge++), data; paper_baseline, paper_quickmerge, paper_tokens_baseline,
        paper_tokens_quickmerge; reason: why figures are missing or some rows have failed, else "".
        What could not be measured is None.
    """
    torch.cuda.empty_cache()  # the engines' processes want most of the memory
    return _booksum(scale, out, data, say) + _ego4d(scale, out, data, say)


def _booksum(scale: Scale, out: Path, data: Table4Data, say: Say) -> list[dict[str, Any]]:
    told = Path(data.booksum).name if data.booksum else MICRO
    if scale.name == "smoke":
        return [row(BOOKSUM, ROUGE, MICRO, NOT_RUN)]
    options = ["--data", data.booksum or "micro"]
    if scale.name == "full":
        if reason := _absent("booksum", data.booksum):
            return [row(BOOKSUM, ROUGE, "", reason)]
    else:
        options += ["--max-tokens", "120"] + ([] if data.booksum else ["--split", "report"])
        options += ["--limit", "3"] if scale.name == "small" else []
    options += ["--model", data.model] if data.model else []
    say(f"table 4: {BOOKSUM}, {told}")
    summary, reason = command("booksum", out / "booksum", options)
    return [filled(row(BOOKSUM, ROUGE, told, reason), ROUGE, summary)]


def _ego4d(scale: Scale, out: Path, data: Table4Data, say: Say) -> list[dict[str, Any]]:
    source = None if scale.name == "smoke" else data.ego4d
    told = Path(source).name if source else SYNTHETIC
    minutes = {"smoke": 0.1, "full": data.train_minutes}.get(scale.name, 3.0)
    options = ["--data", source or SYNTHETIC, "--train-minutes", f"{minutes:g}"]
    summary: Mapping[str, Any] | None = None
    reason = _absent("ego4d_nlq", source) if scale.name == "full" else ""
    if reason:
        told = ""
    else:
        options += ["--features", data.features] if source and data.features else []
        options += ["--limit", "6"] if scale.name == "smoke" else []
        say(f"table 4: {EGO4D}, {told}; its prior trains for {minutes:g} minutes")
        summary, reason = command("ego4d-nlq", out / "ego4d", options)
    return [
        filled(row(task, measure, told, reason), measure, summary, way)
        for task, measures, way in ((EGO4D, WINDOWS, "quickmerge"), (RANDOM, GUESSED, "random"))
        for measure in measures
    ]


def command(name: str, out: Path, options: Sequence[str]) -> tuple[dict[str, Any] | None, str]:
    """Run ``qm-vllm eval NAME`` in a process of its own; what it prints goes to ``OUT.log``.

    Returns:
        what its summary.json holds, None if it left none; and a reason: why there is none, or
        how many rows have failed, or "".
    """
    ratios = f"1.0,{RATIO:.4f}"
    line = [sys.executable, "-m", "qm_vllm.cli.main", "eval", name, "--out", str(out),
            "--ratios", ratios, "--replicas", "0", *options]
    out.parent.mkdir(parents=True, exist_ok=True)
    log, file = out.with_suffix(".log"), out / "summary.json"
    before = file.stat().st_mtime_ns if file.is_file() else None
    with log.open("w", encoding="utf-8") as stream:
        # Wide lines: the sentence of an error is not broken.
        code = subprocess.run(
            line, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, check=False,
            env={**os.environ, "COLUMNS": "4000"},
        ).returncode
    # A command that fails before its rows leaves the summary of an earlier run as it was.
    if not file.is_file() or (code and file.stat().st_mtime_ns == before):
        text = log.read_text(encoding="utf-8", errors="replace")
        return None, f"qm-vllm eval {name}: {last_sentence(text) or f'exit code {code}'}"
    summary = json.loads(file.read_text(encoding="utf-8"))
    failed = summary["failed"]
    return summary, f"{failed} of {summary['rows']} rows have failed" if failed else ""


def last_sentence(text: str) -> str:
    """What a command says of its failure: its last "error: ...", else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (told or lines or [""])[-1][:MOST_REASON]


def row(task: str, measure: Measure, data: str, reason: str) -> dict[str, Any]:
    """A row without figures of ours."""
    blank = ("baseline", "baseline_low", "baseline_high", "quickmerge", "quickmerge_low",
             "quickmerge_high", "difference", "tokens_baseline", "tokens_quickmerge",
             "change_tokens")
    return {
        "task": task, "metric": measure.metric, **dict.fromkeys(blank), "rows": 0, "data": data,
        "paper_baseline": measure.paper[0], "paper_quickmerge": measure.paper[1],
        "paper_tokens_baseline": measure.tokens[0], "paper_tokens_quickmerge": measure.tokens[1],
        "reason": reason,
    }


def filled(
    held: dict[str, Any], measure: Measure, summary: Mapping[str, Any] | None,
    way: str = "quickmerge",
) -> dict[str, Any]:
    """The row with what a summary.json says of the ratio 1 and of the way at a lower ratio."""
    if summary is None:
        return held
    plain = next((part for part in summary["ratios"] if part["ratio"] == 1.0), None)
    ours = next((part for part in summary["ratios"]
                 if part["ratio"] < 1 and part.get("way", way) == way), None)
    if not plain or not ours or not plain["rows"] or not ours["rows"]:
        return held | {"reason": held["reason"] or "no row has a figure at both ratios"}
    found: dict[str, Any] = {"rows": ours["rows"]}
    for name, part in (("baseline", plain), ("quickmerge", ours)):
        value = part["metrics"][measure.column]
        for key, end in (("mean", ""), ("low", "_low"), ("high", "_high")):
            found[name + end] = None if value[key] is None else 100 * value[key]
        found[f"tokens_{name}"] = part["means"]["kept_tokens"]
    found["difference"] = found["quickmerge"] - found["baseline"]
    before, after = found["tokens_baseline"], found["tokens_quickmerge"]
    if before and after is not None:
        found["change_tokens"] = 100 * (after / before - 1)
    return held | found


def _absent(name: str, source: str | None) -> str:
    """Why a data set cannot be opened, in its loader's words; "" if it can."""
    try:
        open_published(name, source, "validation")
    except DataSetError as error:
        return str(error)[:MOST_REASON]
    return ""
