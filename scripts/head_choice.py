#!/usr/bin/env python
"""Measures what KV heads gain by tokens of their own, on many tasks in little time.

    .venv/bin/python scripts/head_choice.py --out points.csv --methods native-one-choice,native

Adds one line a prompt, method and ratio to the CSV (likelihoods alone, nothing is decoded), and
prints retention (docs/quality.md) at each ratio. Prompts that the file has already are left out.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from qm_vllm.assets import embedded
from qm_vllm_eval.engines.base import Cell
from qm_vllm_eval.engines.reference import ReferenceEngine
from qm_vllm_eval.haystacks import available
from qm_vllm_eval.methods import METHODS, Method
from qm_vllm_eval.metrics import retention
from qm_vllm_eval.sample import Sample
from qm_vllm_eval.tasks import build_sample

RATIOS = (0.25, 0.125)
TASKS = (
    "abstract", "next_code_line", "paragraphs", "hotpot", "many_shot", "key_value", "wikitext",
    "needle_digits", "needle_multikey", "recall", "question_answering", "variable_tracking",
    "copy_edit", "continuation",
)
COLUMNS = ("task", "index", "method", "ratio", "nll")


def shortened(sample: Sample, engine: ReferenceEngine, most: int) -> Sample:
    """The sample with the first ``most`` tokens of its target or a few less, and no decoding."""
    target = sample.target
    ends = [found.end() for found in re.finditer(r"\s*\S+", target)]
    while most and len(ends) > 1 and len(engine.tokenizer.encode(
        target[: ends[-1]], add_special_tokens=False
    )) > most:
        ends.pop()
    return replace(sample, target=target[: ends[-1]], max_new_tokens=0, metric="none")


def lines(engine: ReferenceEngine, sample: Sample, methods: list[Method]) -> Iterator[list[object]]:
    """What one prompt gives."""
    cells: list[Cell] = [(METHODS["none"], 0.0), (METHODS["plain"], 1.0)]
    cells += [(method, ratio) for method in methods for ratio in RATIOS]
    for rows in engine.evaluate(sample, cells):
        for row in rows:
            yield [row.task, row.index, row.method, row.ratio, row.nll]


def table(points: pd.DataFrame) -> pd.DataFrame:
    """Retention at each ratio, one row a method, one column a task."""
    nll = points.set_index(["task", "method", "ratio", "index"]).nll.sort_index()
    tasks = [task for task in TASKS if task in set(points.task)]
    rows = {}
    for method in points.method.unique():
        if method in ("none", "plain"):
            continue
        row = {}
        for task in tasks:
            none, plain = nll[task, "none", 0.0], nll[task, "plain", 1.0]
            own = [nll[task, method, r] for r in RATIOS if (task, method, r) in nll.index]
            row[task] = " | ".join(
                f"{retention(none[one.index], one, plain[one.index]):.2f}" for one in own
            )
        rows[method] = row
    return pd.DataFrame(rows).T


@torch.inference_mode()
def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="CSV file, added to")
    parser.add_argument("--methods", default="native-one-choice,native,native-expected")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--samples", type=int, default=4, help="of each task")
    parser.add_argument("--first-sample", type=int, default=0)
    parser.add_argument("--length", type=int, default=1000, help="tokens of a prompt")
    parser.add_argument("--split", default="tune")
    parser.add_argument("--blind", action="store_true", help="hide the question from the choice")
    parser.add_argument("--target", type=int, default=0, help="tokens of a target; 0: all")
    parser.add_argument("--model", help="folder of a model; default: the embedded one")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    methods = [METHODS[name] for name in arguments.methods.split(",")]
    engine = ReferenceEngine(
        arguments.model or embedded.ensure_model(), dtype=arguments.dtype,
        threads=arguments.threads,
    )
    known = pd.read_csv(arguments.out) if arguments.out.exists() else None
    done = set() if known is None else set(zip(known.task, known["index"], known.method,
                                               strict=True))
    with arguments.out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if known is None:
            writer.writerow(COLUMNS)
        first = arguments.first_sample
        for index in range(first, first + arguments.samples):
            for task in arguments.tasks.split(","):
                missing = [one for one in methods if (task, index, one.name) not in done]
                if not missing:
                    continue
                sample = build_sample(
                    task, length=arguments.length, split=arguments.split, index=index,
                    tokenizer=engine.tokenizer, haystacks=available(),
                    query_visible=not arguments.blind,
                )
                writer.writerows(lines(
                    engine, shortened(sample, engine, arguments.target), missing
                ))
                file.flush()
    points = pd.read_csv(arguments.out)
    print(table(points.drop_duplicates(list(COLUMNS[:-1]), keep="last")).to_string())


if __name__ == "__main__":
    main()
