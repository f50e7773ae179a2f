#!/usr/bin/env python
"""Measures whether a budget per prompt pays: alpha and max_error against one share for all.

    .venv/bin/python scripts/adaptive_budget.py --out eval/results/adaptive

Writes points.csv (every prompt and share), policies.csv, adaptive.png. What the columns are:
eval/qm_vllm_eval/study/adaptive.py. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from qm_vllm.assets import embedded
from qm_vllm.calibration import calibrated
from qm_vllm.compress import AttentionError, absolute_saliency, choose, protected_positions
from qm_vllm.config import QuickMergeConfig
from qm_vllm.layers import WINDOW_QUERIES, encoder_depth, window_layers
from qm_vllm_eval.engines.reference import ReferenceEngine
from qm_vllm_eval.haystacks import available
from qm_vllm_eval.methods import METHODS
from qm_vllm_eval.methods.quickmerge import evidence_of, options
from qm_vllm_eval.prompt import Prompt
from qm_vllm_eval.study.adaptive import FIXED, ORACLE, Curve, compare, rank_correlation
from qm_vllm_eval.tasks import build_sample

RATIOS = (0.03125, 0.0625, 0.09, 0.125, 0.18, 0.25, 0.33, 0.5)
TARGETS = (0.0625, 0.09, 0.125, 0.18, 0.25)
TASKS = (
    "needle_digits", "needle_fact", "needle_names", "needle_multikey", "needle_multiquery",
    "variable_tracking", "recall", "question_answering", "continuation", "copy_edit",
)


def signals(engine: ReferenceEngine, prompt: Prompt) -> dict[float, dict[str, float]]:
    """By share: alpha (turned round, so that it falls) and the attention error."""
    request = engine.request_for(prompt)
    ks = {ratio: engine.k_for(prompt, ratio) for ratio in RATIOS}
    config = calibrated(
        QuickMergeConfig().override(options("quickmerge", ks[RATIOS[0]], visible=True)),
        engine.decoder.config,
    )
    protected = protected_positions(config, request.tokens)
    order = choose(evidence_of(request, config), config, protected=protected, k=1).order.cpu()
    layers, prefill = engine.decoder.num_layers, request.prefill
    depth = encoder_depth(config, layers)
    error = AttentionError.joined([
        AttentionError.of(
            prefill.head_attention(layer, WINDOW_QUERIES), prefill.values[layer], order,
            list(ks.values()),
        )
        for layer in range(depth - window_layers(config, layers), depth)
    ]).relative()
    blind = QuickMergeConfig(saliency="entropy")
    absolute = absolute_saliency(evidence_of(request, blind)).cpu().sort(descending=True).values
    return {
        ratio: {"alpha": float(absolute[k - 1]), "max_error": float(error[place])}
        for place, (ratio, k) in enumerate(ks.items())
    }


@torch.inference_mode()
def measure(engine: ReferenceEngine, samples: int, length: int, split: str) -> pd.DataFrame:
    """One line a prompt and share."""
    cells: list[Any] = [(METHODS["none"], 0.0), (METHODS["plain"], 1.0)]
    cells += [(METHODS["quickmerge"], ratio) for ratio in RATIOS]
    lines = []
    for index in range(samples):
        for task in TASKS:
            sample = build_sample(
                task, length=length, split=split, index=index, tokenizer=engine.tokenizer,
                haystacks=available(),
            )
            sample = replace(sample, max_new_tokens=0, metric="none")
            seen = signals(engine, Prompt.of(sample, engine.tokenizer))
            rows = {
                (row.method, row.ratio): row for part in engine.evaluate(sample, cells)
                for row in part
            }
            ends = {"none": rows["none", 0.0].nll, "plain": rows["plain", 1.0].nll}
            for ratio in RATIOS:
                lines.append({
                    "sample_id": sample.sample_id, "family": sample.family, "ratio": ratio,
                    "nll": rows["quickmerge", ratio].nll, **ends, **seen[ratio],
                })
            print(sample.sample_id, flush=True)
    return pd.DataFrame(lines)


def curves(points: pd.DataFrame) -> list[Curve]:
    """Every prompt's curve, shares increasing."""
    return [
        Curve(
            str(one["family"].iloc[0]), float(one["none"].iloc[0]), float(one["plain"].iloc[0]),
            one["nll"].to_numpy(dtype=float),
            {name: one[name].to_numpy(dtype=float) for name in ("alpha", "max_error")},
        )
        for _, one in points.sort_values("ratio").groupby("sample_id", sort=False)
    ]


def plot(policies: pd.DataFrame, file: Path) -> None:
    """Retention against mean share, one line a policy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    labels = {FIXED: "the same share for all", ORACLE: "oracle (knows the loss)",
              "alpha": "alpha", "max_error": "max_error"}
    for name, style in zip(labels, ("o-", "s--", "^-", "v-"), strict=True):
        one = policies[policies["policy"] == name]
        axis.plot(one["share"], one["retention"], style, label=labels[name])
    axis.set(xlabel="mean share of tokens kept", ylabel="retention, mean over families (cut at 1)")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Run, or only evaluate again what points.csv holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=4, help="of each of ten tasks")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a prompt")
    parser.add_argument("--split", default="report")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "points.csv"
    if not file.exists():
        engine = ReferenceEngine(embedded.ensure_model(), threads=arguments.threads)
        points = measure(engine, arguments.samples, arguments.length, arguments.split)
        points.round(5).to_csv(file, index=False)
    points = pd.read_csv(file)
    policies = pd.DataFrame([vars(one) for one in compare(curves(points), RATIOS, TARGETS)])
    policies = policies.join(pd.DataFrame(list(policies.pop("shares"))).add_prefix("share_"))
    policies.round(3).to_csv(arguments.out / "policies.csv", index=False)
    plot(policies, arguments.out / "adaptive.png")
    print(policies.round(3).to_string(index=False))
    loss = points["nll"] - points["plain"]
    for name in ("alpha", "max_error"):
        at = [rank_correlation(points[name][points["ratio"] == r], loss[points["ratio"] == r])
              for r in RATIOS]
        print(f"{name}: rank correlation with the loss {rank_correlation(points[name], loss):.2f}, "
              f"at each share {np.round(at, 2).tolist()}")


if __name__ == "__main__":
    main()
