"""Sets to learn from and to answer, made here, and a small prior trained on one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qm_vllm.encoders.load import of_width
from qm_vllm.prior import PriorConfig
from qm_vllm.prior.data import read
from qm_vllm.prior.options import TrainOptions
from qm_vllm.prior.side_inputs import QUERY_BUCKETS, TIME_FEATURES
from qm_vllm.prior.trainer import Trainer
from qm_vllm_eval.datasets.ego4d_nlq import FEATURES_PER_SECOND, Ego4dNlq
from qm_vllm_eval.datasets.ego4d_real import cached_features, write_spliced
from qm_vllm_eval.datasets.ego4d_synthetic import SyntheticSpec, write_synthetic
from qm_vllm_eval.ego4d.manifest import write_manifest

FEATURES, SPLITS = "features", ("train", "val")
TRAIN = SyntheticSpec(
    videos=500, queries_per_clip=5, seed=1, clip_seconds=(160.0, 240.0)
)
"""Shorter clips than those that are asked about: a step takes a third of the time."""
VAL = SyntheticSpec(videos=16, seed=0)

BINS = 128
LONGEST = 1024
"""Features of a clip that training reads, at most: nine minutes."""


def synthetic(folder: Path, train: SyntheticSpec = TRAIN, val: SyntheticSpec = VAL) -> None:
    """``nlq_train.json``, ``nlq_val.json`` and ``features/``; files that are there stay."""
    for split, spec in zip(SPLITS, (train, val), strict=True):
        if not (folder / f"nlq_{split}.json").is_file():
            write_synthetic(folder, split, spec)


def spliced(folder: Path, train: int = 200, val: int = 12) -> None:
    """The same of real videos, spliced; so many clips of each split.

    Raises:
        DataSetError: the videos are not on this machine (docs/datasets.md says where they are).
    """
    missing = [split for split in SPLITS if not (folder / f"nlq_{split}.json").is_file()]
    if not missing:
        return
    features = cached_features()
    for split, count, seed in zip(SPLITS, (train, val), (1, 0), strict=True):
        if split in missing:
            write_spliced(folder, features, split=split, videos=count, seed=seed)


def train(
    annotations: Path, features: Path, heldout: Path, out: Path, minutes: float, *,
    features_per_second: float = FEATURES_PER_SECOND, seed: int = 0,
    report: Callable[[str, dict[str, Any]], None] = lambda kind, figures: None,
) -> dict[str, Any]:
    """Train a prior of three blocks of width 128 on the queries of a set; returns its metrics.

    K / N is drawn from 0.3 to 1, so that the prior reads whole clips and merged ones. A run that
    was cut goes on.

    Args:
        annotations, heldout: annotation files to train on, and to measure on while training.
        features: folder with the features of both.
    """
    manifests = []
    for name, file in (("train", annotations), ("heldout", heldout)):
        manifest = out / name / "manifest.jsonl"
        if not manifest.is_file():
            rows = Ego4dNlq(file, features, features_per_second=features_per_second)
            write_manifest(rows, out / name)
        manifests.append(manifest)
    data = read(manifests[:1], manifests[1:], LONGEST)
    encoder = of_width(Path(data.train[0].source))
    config = PriorConfig(
        input_size=encoder.hidden_size + TIME_FEATURES, time_features=TIME_FEATURES,
        hidden_size=128, intermediate_size=320, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, num_tokens=QUERY_BUCKETS, num_time_bins=BINS, encoder=encoder.name,
        backward_twin=False,
    )
    options = TrainOptions(
        minutes=minutes, batch_size=8, window_tokens=LONGEST, ratios=(0.3, 1.0),
        learning_rate=2e-3, seed=seed, heldout_sequences=32,
    )
    return Trainer(encoder, data, config, options, out, report).run()
