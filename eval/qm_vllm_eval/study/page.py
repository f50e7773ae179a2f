"""The report of a study as one HTML file that refers to no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from qm_vllm_eval.study import page_parts as parts
from qm_vllm_eval.study.page_script import SCRIPT
from qm_vllm_eval.study.page_style import STYLE
from qm_vllm_eval.study.plots import Picture, inline_svg

TITLE = "KV-memory comparison study"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
LEAD = (
    "How much of a long prompt's benefit is left when its KV cache is cut down, by method, "
    "budget and family of tasks."
)
GUIDE = """
<p><b>Retention</b> is the share of the context's benefit that a method keeps: (NLL without the
context − NLL with the method) / (NLL without the context − NLL with all of it), mean negative
log-likelihood of the right answer over the same samples. 1 is as good as the whole prompt, 0 as
bad as no context; below 0 the compressed prompt misleads, above 1 it helps more than the whole.
Bands, whiskers and intervals hold 95 % of bootstrap resamples of the samples.</p>
<p><b>Match</b> is the score of the generated answer by the task's own metric, 0 to 1. <b>Exact</b>
is the share of samples whose greedy decoding starts with the right answer. <b>KV</b> is the memory
of the kept positions over all layers, per prompt. <b>Kept</b> is what was really kept, as a share
of the prompt; <b>ratio</b> is what was asked for. <b>Seconds</b> are those of compression and
delivery, without the shared prefill.</p>
<p>In a figure, further up and further left is better. Compare methods at the same KV memory, and
within a family; there is no mean over families on purpose, because it would depend on which
tasks happen to be in the study. Overlapping intervals mean that the order of two methods is not
settled.</p>
<p>In the tables, the framed cell is the highest of its column and <b>*</b> marks a cell with fewer
samples than plain has. <b>–</b>: no figure, the reason is in the cell's hint; <b>·</b>: not
measured. Hover over a cell, or tap it, for its interval. Blue is 0 to 1, orange below 0:
<span class="scale" aria-hidden="true">SCALE</span></p>
"""


def build_page(
    results: pd.DataFrame,
    families: pd.DataFrame,
    failed: pd.DataFrame,
    meta: Mapping[str, Any],
    pictures: Sequence[Picture],
    *,
    rows: int,
) -> str:
    """HTML of the report; nothing in it refers to another file.

    Args:
        results, families, failed: from :mod:`qm_vllm_eval.study.results`.
        meta: contents of run_meta.json.
        pictures: from :func:`qm_vllm_eval.study.plots.draw_all`.
        rows: how many lines the predictions have.
    """
    groups = list(families.groupby(["length", "query_visible"], sort=True))
    links = "".join(
        f'<li><a href="#{_anchor(*place)}">{_mode(*place)}</a></li>' for place, _ in groups
    )
    asked = parts.ratios(families)
    methods = sorted(set(families["method"]))
    sections = "".join(
        _section(int(length), bool(visible), part, asked, methods, pictures)
        for (length, visible), part in groups
    )
    runs = list(meta.get("runs") or [])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{TITLE}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{TITLE}</h1><p class="lead">{LEAD}</p>{_open_run(runs, rows)}'
        f"{_facts(meta, runs, families, rows)}</header>\n"
        f'<nav aria-label="Sections"><ul>{links}<li><a href="#results">All results</a></li>'
        '<li><a href="#methods">Methods</a></li><li><a href="#failed">Failed rows</a></li>'
        '<li><a href="#setup">Measured with</a></li></ul></nav>\n'
        '<details open><summary>How to read this</summary>'
        f'<div class="guide">{_guide()}</div></details>\n<main>'
        f"{parts.ratio_buttons(asked) if asked else ''}{sections}"
        f'<h2 id="results">All results</h2>{parts.results_table(results)}'
        f'<h2 id="methods">Methods</h2>{parts.pairs_table(_methods(runs).items())}'
        f'<h2 id="failed">Failed rows</h2>{parts.failure_table(failed)}'
        f'<h2 id="setup">Measured with</h2>{_setup(meta, runs)}</main>\n'
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _section(
    length: int, visible: bool, part: pd.DataFrame, asked: list[float], methods: list[str],
    pictures: Sequence[Picture],
) -> str:
    own = {
        picture.quality: f'<figure class="scroll">{_drawing(picture)}</figure>'
        for picture in pictures
        if (picture.length, picture.query_visible) == (length, visible)
    }
    match = own.get("match")
    return (
        f'<section><h2 id="{_anchor(length, visible)}">{_mode(length, visible)}</h2>'
        f"{own.get('retention', '<p>No method has a retention here yet.</p>')}"
        f"{parts.heat_tables(part, asked, methods)}"
        + (f"<details><summary>Match instead of retention</summary>{match}</details>"
           if match else "")
        + "</section>\n"
    )


def _drawing(picture: Picture) -> str:
    return inline_svg(picture).replace("<svg ", '<svg class="plot" ', 1)


def _anchor(length: int, visible: bool) -> str:
    return f"at-{length}-{'visible' if visible else 'hidden'}"


def _mode(length: int, visible: bool) -> str:
    place = f"{length:,} tokens" if length else "Your own prompts"
    return f"{place}, question {'visible' if visible else 'hidden'}"


def _guide() -> str:
    steps = [("bad", 70), ("bad", 35), ("good", 4), ("good", 25), ("good", 50), ("good", 72)]
    scale = "".join(
        f'<span style="background:color-mix(in srgb,var(--{name}) {share}%,var(--page))"></span>'
        for name, share in steps
    )
    return GUIDE.replace("SCALE", scale)


def _open_run(runs: Sequence[Mapping[str, Any]], rows: int) -> str:
    if not runs or runs[-1].get("ended"):
        return ""
    return (
        '<p class="note">The last run has not ended, or was cut off: this is what its first '
        f"{rows:,} rows say.</p>"
    )


def _facts(
    meta: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], families: pd.DataFrame, rows: int
) -> str:
    pairs: list[tuple[str, Any]] = [
        (name.replace("_", " ").capitalize(), value)
        for name, value in meta.get("configuration", {}).items()
        if not isinstance(value, Mapping) and len(parts.text(value)) <= 60
    ]
    pairs += [
        ("Methods", len(set(families["method"]))),
        ("Families", len(set(families["family"]))),
        ("Rows", f"{rows:,}"),
    ]
    if runs:
        pairs += [("Commit", _commit(runs[-1])), ("Hardware", _hardware(runs[-1])),
                  ("Last run", runs[-1].get("started"))]
    return parts.facts(pairs)


def _setup(meta: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    settings = parts.pairs_table(meta.get("configuration", {}).items())
    listed = "".join(
        f"<details{' open' if place == 0 else ''}><summary>Run of "
        f"{escape(str(run.get('started')))}</summary>{parts.pairs_table(_run(run))}</details>"
        for place, run in enumerate(reversed(runs))
    )
    return (
        f"<h3>Configuration, equal for all rows</h3>{settings}"
        f"<h3>Runs, newest first</h3>{listed or '<p>None.</p>'}"
    )


def _run(run: Mapping[str, Any]) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = [
        ("ended", run.get("ended") or "not ended"),
        ("commit", _commit(run)),
        ("hardware", _hardware(run)),
    ]
    shown = {"started", "ended", "commit", "hardware", "methods"}
    return pairs + [(name, value) for name, value in run.items() if name not in shown]


def _methods(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Settings of all runs' methods; the newest run's sentence counts."""
    found: dict[str, str] = {}
    for run in runs:
        found |= run.get("methods") or {}
    return dict(sorted(found.items()))


def _commit(run: Mapping[str, Any]) -> str:
    commit = run.get("commit")
    if not commit:
        return "outside a checkout"
    return str(commit["id"])[:12] + (" with changes" if commit.get("dirty") else "")


def _hardware(run: Mapping[str, Any]) -> str:
    found = run.get("hardware") or {}
    said = [str(found.get("cpu", "unknown processor"))]
    if found.get("cores"):
        said.append(f"{found['cores']} cores")
    if found.get("memory_mib"):
        said.append(f"{found['memory_mib'] / 1024:.0f} GiB")
    said += [f"{gpu['name']} {gpu['memory_mib'] / 1024:.0f} GiB" for gpu in found.get("gpus", [])]
    return ", ".join(said)
