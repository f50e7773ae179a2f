"""Chooses how deep a model's encoder part is: the shallowest that keeps as much as the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qm_vllm.calibration import ModelShape
from qm_vllm.eval.engines.base import Cell
from qm_vllm.eval.engines.reference import ReferenceEngine
from qm_vllm.eval.haystacks import available
from qm_vllm.eval.methods import METHODS
from qm_vllm.eval.methods.base import Method, Request
from qm_vllm.eval.methods.quickmerge import compress_with, options
from qm_vllm.eval.metrics import retention
from qm_vllm.eval.reference.reader import CompressedContext
from qm_vllm.eval.row import OK, Row
from qm_vllm.eval.tasks import TASKS, build_sample

SHALLOWEST, DEEPEST, MOST = 0.4, 0.8, 14
"""Depths to try: shares of the model's layers, and how many at most. Neighbours differ: what
looks things up sits in few layers."""
RATIOS = (0.25, 0.125)
TOLERANCE = 0.02
"""Retention that a shallower encoder may lose against the best one."""
SPLIT = "tune"
NAMES = (
    "needle_fact", "needle_multikey", "needle_multiquery", "recall", "question_answering",
    "variable_tracking", "copy_edit", "continuation",
)


@dataclass(frozen=True)
class Depth:
    """What one depth E keeps.

    Attributes:
        retention: mean over families and ratios, each cut at 1 (more than the full prompt is
            no better); families: without the cut, mean over ratios.
        work: prefill work without attention at a third of the tokens, plain prefill = 1.
    """

    layers: int
    retention: float
    families: dict[str, float]
    work: float


def depths(num_layers: int) -> list[int]:
    """The depths to try, at least 2 layers each."""
    low, high = max(2, round(SHALLOWEST * num_layers)), max(2, round(DEEPEST * num_layers))
    steps = min(MOST - 1, high - low)
    return sorted({low + round((high - low) * i / max(1, steps)) for i in range(steps + 1)})


def measure(
    engine: ReferenceEngine, tried: Sequence[int], *, samples: int, length: int,
    advanced: Callable[[], object] = lambda: None,
) -> list[Depth]:
    """Retention at each depth on the same samples of the split for choices.

    Args:
        tried: depths E. samples: of each task. length: tokens of a prompt.
        advanced: called after each of ``samples * len(NAMES)`` prompts.

    Raises:
        ValueError: a task cannot be built at this length.
        HaystackError: no texts are installed.
    """
    cells: list[Cell] = [(METHODS["none"], 0.0), (METHODS["plain"], 1.0)]
    cells += [(_at(depth), ratio) for depth in tried for ratio in RATIOS]
    rows: list[Row] = []
    texts = available()
    for index in range(samples):
        for name in NAMES:
            sample = build_sample(
                name, length=max(length, TASKS[name].minimum), split=SPLIT, index=index,
                tokenizer=engine.tokenizer, haystacks=texts,
            )
            for part in engine.evaluate(sample, cells):
                rows += part
            advanced()
    return [_summary(rows, depth, engine.decoder.num_layers) for depth in tried]


def choose(measured: Sequence[Depth]) -> Depth:
    """The shallowest whose retention is within :data:`TOLERANCE` of the best."""
    best = max(depth.retention for depth in measured)
    return min(
        (depth for depth in measured if depth.retention >= best - TOLERANCE),
        key=lambda depth: depth.layers,
    )


def shape_of(engine: ReferenceEngine) -> ModelShape:
    """Shape of the engine's model."""
    return ModelShape.of(engine.decoder.config)


def _at(depth: int) -> Method:
    def compress(request: Request) -> CompressedContext:
        chosen: dict[str, Any] = options("quickmerge", request.k, visible=True)
        return compress_with(chosen | {"encoder_layers": depth}, request)

    return Method(f"E={depth}", f"quickmerge with E = {depth}", compress)


def _summary(rows: Sequence[Row], depth: int, num_layers: int) -> Depth:
    losses: dict[tuple[str, float], dict[str, float]] = {}
    families = {row.sample_id: row.family for row in rows}
    for row in rows:
        if row.status == OK:
            losses.setdefault((row.method, row.ratio), {})[row.sample_id] = row.nll
    none, full = losses["none", 0.0], losses["plain", 1.0]
    found: dict[str, list[float]] = {}
    for ratio in RATIOS:
        own = losses.get((f"E={depth}", ratio), {})
        for family in dict.fromkeys(families.values()):
            ids = [i for i in own if families[i] == family and i in none and i in full]
            if ids:
                kept = retention(
                    [none[i] for i in ids], [own[i] for i in ids], [full[i] for i in ids]
                )
                found.setdefault(family, []).append(kept)
    cut = [min(1.0, value) for values in found.values() for value in values if value == value]
    return Depth(
        layers=depth,
        retention=float(np.mean(cut)) if cut else float("nan"),
        families={family: round(float(np.nanmean(v)), 3) for family, v in found.items()},
        work=depth / num_layers + (1 - depth / num_layers) / 3,
    )
