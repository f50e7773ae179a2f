#!/usr/bin/env python
"""How much a method's retention differs from another's on the same samples of a study.

    .venv/bin/python scripts/paired_retention.py study --base quickmerge > paired.csv

Per ratio, method and family: the difference of retention (docs/quality.md) and its 95 % interval
from 2,000 paired resamples.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import pandas as pd

from qm_vllm_eval.metrics import bootstrap_retention, retention

REFERENCES = ("none", "plain")


def differences(frame: pd.DataFrame, base: str) -> list[dict[str, object]]:
    """Rows of the table, from the predictions of a study."""
    nll = frame.set_index(["method", "ratio", "sample_id"]).nll
    family = frame.drop_duplicates("sample_id").set_index("sample_id").family
    gained = nll["none"].droplevel(0) - nll["plain"].droplevel(0)
    rows: list[dict[str, object]] = []
    methods = [name for name in frame.method.unique() if name not in (*REFERENCES, base)]
    for ratio in sorted(nll[base].index.unique(level=0), reverse=True):
        for method in methods:
            both = pd.DataFrame({"base": nll[base][ratio], "other": nll[method][ratio]}).dropna()
            for name in sorted(family.unique()):
                held = both.loc[both.index.intersection(family.index[family == name])]
                # The difference is a retention: what the base lacks of it, over the same benefit.
                columns = (held.base, held.other, held.base - gained[held.index])
                low, high = bootstrap_retention(*columns)
                rows.append({
                    "ratio": ratio, "method": method, "family": name, "samples": len(held),
                    "difference": retention(*columns), "low": low, "high": high,
                })
    return rows


def main() -> None:
    """Read a study, write CSV."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path, help="folder of `qm-vllm compare`")
    parser.add_argument("--base", default="quickmerge")
    args = parser.parse_args()
    rows = differences(pd.read_parquet(args.study / "predictions.parquet"), args.base)
    writer = csv.DictWriter(sys.stdout, list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({
            key: f"{value:.4f}" if key in ("difference", "low", "high") else value
            for key, value in row.items()
        })


if __name__ == "__main__":
    main()
