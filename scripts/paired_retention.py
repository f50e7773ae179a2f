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

import numpy as np
import pandas as pd

RESAMPLES = 2000
REFERENCES = ("none", "plain")


def differences(frame: pd.DataFrame, base: str) -> list[dict[str, object]]:
    """Rows of the table, from the predictions of a study."""
    nll = frame.set_index(["method", "ratio", "sample_id"]).nll
    family = frame.drop_duplicates("sample_id").set_index("sample_id").family
    gained = nll["none"].droplevel(0) - nll["plain"].droplevel(0)
    chooser = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    methods = [name for name in frame.method.unique() if name not in (*REFERENCES, base)]
    for ratio in sorted(nll[base].index.unique(level=0), reverse=True):
        for method in methods:
            change = (nll[base][ratio] - nll[method][ratio]).dropna()
            for name in sorted(family.unique()):
                ids = change.index.intersection(family.index[family == name])
                better, whole = change[ids].to_numpy(), gained[ids].to_numpy()
                drawn = chooser.integers(0, len(ids), (RESAMPLES, len(ids)))
                shares = better[drawn].mean(1) / whole[drawn].mean(1)
                low, high = np.quantile(shares, (0.025, 0.975))
                rows.append({
                    "ratio": ratio, "method": method, "family": name, "samples": len(ids),
                    "difference": better.mean() / whole.mean(), "low": low, "high": high,
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
