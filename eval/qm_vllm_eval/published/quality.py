"""Tables and figures of the bench's studies, from their families.csv."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Sequence

from qm_vllm_eval.published.form import Row, Unknown, figure, markdown, ratio_of
from qm_vllm_eval.published.stored import STUDIES

FOLDERS = {
    "query": ("smollm2-query", "smollm2-query-4096", "smollm2-query-8000", "smollm2-peers"),
    "blind": ("smollm2-blind",), "blind-end": ("smollm2-blind-end",),
    "gemma": ("gemma-3-270m",), "prior": ("smollm2-prior",),
}
"""Folders of a study; a row that several have is the first one's."""
OURS = {
    "query": ("quickmerge", "quickmerge-compact", "quickmerge-prefill"),
    "blind": ("quickmerge", "head-cover"), "blind-end": ("quickmerge", "head-cover"),
    "gemma": ("quickmerge-prefill", "quickmerge-entropy-prefill"),
    "prior": ("quickmerge", "quickmerge-corrected", "quickmerge-surprise"),
}
OTHERS = (
    "kvpress-snapkv", "kvpress-expected-attention", "kvpress-pyramidkv",
    "kvpress-merging-snapkv", "kvpress-keydiff", "kvpress-knorm", "gemfilter-like",
    "specprefill-like", "truncation", "random", "even", "mean-pool",
)
FP8 = "fp8"
"""Another axis of memory: it keeps all tokens, so it stands in every table."""
WITH_INTERVALS = {
    "query": ("quickmerge",), "blind": ("quickmerge", "head-cover"), "blind-end": (),
    "gemma": ("quickmerge-prefill",), "prior": (),
}
NUMBERS = ("ratio", "samples", "nll", "match", "retention", "retention_lo", "retention_hi",
           "length", "kept_ratio")


@functools.cache
def rows(study: str) -> tuple[Row, ...]:
    """All rows of a study, numbers as numbers, nan where a cell is empty."""
    found: dict[tuple[str, ...], Row] = {}
    if study not in FOLDERS:
        raise Unknown(f"no study '{study}'; there are {', '.join(FOLDERS)}")
    for folder in FOLDERS[study]:
        with (STUDIES / folder / "families.csv").open(encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                key = tuple(row[name] for name in ("family", "method", "ratio", "length"))
                held = {n: float(row[n]) if row[n] else math.nan for n in NUMBERS}
                found.setdefault(key, {**row, **held})
    return tuple(found.values())


def at(study: str, length: str, method: str, ratio: str) -> dict[str, Row]:
    """Rows of one method at one length and ratio, by family."""
    wanted = 1.0 if method in (FP8, "plain") else 0.0 if method == "none" else ratio_of(ratio)
    return {
        row["family"]: row for row in rows(study)
        if row["method"] == method and row["length"] == float(length)
        and abs(row["ratio"] - wanted) < 1e-3
    }


def families(study: str, length: str) -> list[str]:
    """Their names."""
    return sorted({row["family"] for row in rows(study) if row["length"] == float(length)})


def value(study: str, length: str, method: str, ratio: str, family: str,
          column: str = "retention", form: str = ".2f") -> str:
    """One figure; without more words the retention with two decimals."""
    try:
        return figure(at(study, length, method, ratio)[family][column], form)
    except KeyError:
        raise Unknown(f"{study} has no {column} of {method} at {length}, {ratio}, {family}") \
            from None


def retention(study: str, length: str, ratio: str) -> str:
    """Methods by families at one ratio, and the intervals of some."""
    names = families(study, length)
    table = []
    for method in (*OURS[study], *OTHERS, FP8):
        if own := at(study, length, method, ratio):
            table.append({"method": method, **{
                name: figure(own[name]["retention"]) if name in own else "" for name in names
            }})
    parts = [markdown(table)]
    for method in WITH_INTERVALS[study]:
        own = at(study, length, method, ratio)
        spans = ", ".join(f"{name} {_span(own[name], ' to ')}" for name in names if name in own)
        parts.append(f"95 % intervals of {method}: {spans}.")
    return "\n\n".join(parts)


def best(study: str, length: str, *ratios: str) -> str:
    """Per ratio: our methods with intervals, and the best of the others in each family."""
    names = families(study, length)
    table = []
    for ratio in ratios:
        for method in WITH_INTERVALS[study]:
            own = at(study, length, method, ratio)
            table.append({"ratio": ratio, "method": method, **{
                name: f"{figure(own[name]['retention'])} ({_span(own[name], '-')})"
                for name in names
            }})
        held = {name: at(study, length, name, ratio) for name in OTHERS}
        line = {"ratio": ratio, "method": "best of the others"}
        for name in names:
            highest, method = max(
                (own[name]["retention"], method) for method, own in held.items() if name in own)
            line[name] = f"{figure(highest)} {method.removeprefix('kvpress-')}"
        table.append(line)
    return markdown(table)


def match(study: str, length: str, *ratios: str) -> str:
    """What is answered: the full prompt, then our methods at each ratio."""
    names = [name for name in families(study, length) if name != "continuation"]
    lines = [("full prompt", at(study, length, "plain", "1"))]
    for ratio in ratios:
        lines += [(f"{m} {ratio}", at(study, length, m, ratio)) for m in OURS[study]]
    return markdown([
        {"match": title, **{name: figure(own[name]["match"]) for name in names}}
        for title, own in lines
    ])


def likelihoods(study: str, length: str, ratio: str) -> str:
    """A family a line: samples, NLL of four prompts, retention of two."""
    of = {name: at(study, length, name, ratio) for name in (
        "plain", "none", "quickmerge", "truncation")}
    return markdown([
        {
            "family": name, "samples": figure(of["plain"][name]["samples"], ".0f"),
            "NLL, full prompt": figure(of["plain"][name]["nll"]),
            "NLL, no context": figure(of["none"][name]["nll"]),
            "NLL, quickmerge": figure(of["quickmerge"][name]["nll"]),
            "NLL, truncation": figure(of["truncation"][name]["nll"]),
            "quickmerge": figure(of["quickmerge"][name]["retention"]),
            "95 %": _span(of["quickmerge"][name], " to "),
            "truncation": figure(of["truncation"][name]["retention"]),
        }
        for name in families(study, length)
    ])


def intervals(study: str, length: str, *ratios: str) -> str:
    """Our methods at each ratio, every cell with its interval; the first row counts samples."""
    names = families(study, length)
    plain = at(study, length, "plain", "1")
    table = [{"ratio": "", "method": "samples",
              **{name: figure(plain[name]["samples"], ".0f") for name in names}}]
    for ratio in ratios:
        for method in OURS[study]:
            own = at(study, length, method, ratio)
            table.append({"ratio": ratio, "method": method, **{
                name: f"{figure(own[name]['retention'])} ({_span(own[name], '-')})"
                for name in names
            }})
    return markdown(table)


def by_task(folder: str, methods: Sequence[str]) -> str:
    """Retention of methods by ratios and tasks, from results.csv; empty where there is none."""
    with (STUDIES / folder / "results.csv").open(encoding="utf-8") as lines:
        held = [row for row in csv.DictReader(lines) if row["method"] in methods]
    tasks = sorted({row["task"] for row in held})
    found = {(row["method"], float(row["ratio"]), row["task"]): row["retention"] for row in held}
    return markdown([
        {"method": method, "ratio": f"{ratio:g}", **{
            task: figure(float(text)) if (text := found.get((method, ratio, task))) else ""
            for task in tasks
        }}
        for method, ratio in sorted({(method, ratio) for method, ratio, _ in found})
    ])


def _span(row: Row, between: str) -> str:
    return f"{figure(row['retention_lo'])}{between}{figure(row['retention_hi'])}"
