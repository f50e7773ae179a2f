"""Chooses which layers encode and which are read: the shallowest that keep as much as the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qm_vllm.calibration import ModelShape
from qm_vllm_eval.engines.base import Cell
from qm_vllm_eval.engines.reference import ReferenceEngine
from qm_vllm_eval.haystacks import available
from qm_vllm_eval.methods import METHODS
from qm_vllm_eval.methods.base import Method, Request
from qm_vllm_eval.methods.quickmerge import compress_with, options
from qm_vllm_eval.metrics import retention
from qm_vllm_eval.reference.reader import CompressedContext
from qm_vllm_eval.row import OK, Row
from qm_vllm_eval.tasks import TASKS, build_sample

SHALLOWEST, DEEPEST, MOST = 0.4, 0.8, 14
"""Depths to try: shares of the model's layers, and how many at most. Neighbours differ: what
looks things up sits in few layers."""
WINDOWS = (2, 4)
"""Numbers of layers just below E to read."""
RATIOS = (0.25, 0.125)
TOLERANCE = 0.02
"""Retention that a shallower encoder may lose against the best one."""
SPLIT = "tune"
NAMES = (
    "needle_fact", "needle_multikey", "needle_multiquery", "recall", "question_answering",
    "variable_tracking", "copy_edit", "continuation",
)


@dataclass(frozen=True)
class Choice:
    """What one choice of layers keeps.

    Attributes:
        layers: E. window: layers just below it that are read.
        retention: mean over families and ratios, each cut at 1 (more than the full prompt is
            no better); families: without the cut, mean over ratios.
        work: prefill work without attention at a third of the tokens, plain prefill = 1.
    """

    layers: int
    window: int
    retention: float
    families: dict[str, float]
    work: float


def choices(num_layers: int) -> list[tuple[int, int]]:
    """Pairs of E and a window to try."""
    return [(e, w) for e in depths(num_layers) for w in WINDOWS if w <= e]


def depths(num_layers: int) -> list[int]:
    """The depths to try, at least 2 layers each."""
    low, high = max(2, round(SHALLOWEST * num_layers)), max(2, round(DEEPEST * num_layers))
    steps = min(MOST - 1, high - low)
    return sorted({low + round((high - low) * i / max(1, steps)) for i in range(steps + 1)})


def measure(
    engine: ReferenceEngine, tried: Sequence[tuple[int, int]], *, samples: int, length: int,
    advanced: Callable[[], object] = lambda: None,
) -> list[Choice]:
    """Retention of each choice on the same samples of the split for choices.

    Args:
        tried: pairs of E and the window. samples: of each task. length: tokens of a prompt.
        advanced: called after each of ``samples * len(NAMES)`` prompts.

    Raises:
        ValueError: a task cannot be built at this length.
        HaystackError: no texts are installed.
    """
    cells: list[Cell] = [(METHODS["none"], 0.0), (METHODS["plain"], 1.0)]
    cells += [(_at(*pair), ratio) for pair in tried for ratio in RATIOS]
    rows: list[Row] = []
    texts = available()
    for index in range(samples):
        for name in NAMES:
            sample = build_sample(
                name, length=max(length, TASKS[name].minimum), split=SPLIT, index=index,
                tokenizer=engine.tokenizer, haystacks=texts,
            )
            likelihood = replace(sample, max_new_tokens=0, metric="none")
            for part in engine.evaluate(likelihood, cells):
                rows += part
            advanced()
    return [_summary(rows, *pair, engine.decoder.num_layers) for pair in tried]


def choose(measured: Sequence[Choice]) -> Choice:
    """The shallowest whose retention is within :data:`TOLERANCE` of the best; of these the best."""
    best = max(one.retention for one in measured)
    within = [one for one in measured if one.retention >= best - TOLERANCE]
    return min(within, key=lambda one: (one.layers, -one.retention))


def shape_of(engine: ReferenceEngine) -> ModelShape:
    """Shape of the engine's model."""
    return ModelShape.of(engine.decoder.config)


def _at(depth: int, window: int) -> Method:
    def compress(request: Request) -> CompressedContext:
        chosen: dict[str, Any] = options("quickmerge", request.k, visible=True)
        layers = {"encoder_layers": depth, "window_layers": window}
        return compress_with(chosen | layers, request)

    return Method(_name(depth, window), "quickmerge with these layers", compress)


def _name(depth: int, window: int) -> str:
    return f"E={depth}, {window} read"


def _summary(rows: Sequence[Row], depth: int, window: int, num_layers: int) -> Choice:
    losses: dict[tuple[str, float], dict[str, float]] = {}
    families = {row.sample_id: row.family for row in rows}
    for row in rows:
        if row.status == OK:
            losses.setdefault((row.method, row.ratio), {})[row.sample_id] = row.nll
    none, full = losses["none", 0.0], losses["plain", 1.0]
    found: dict[str, list[float]] = {}
    for ratio in RATIOS:
        own = losses.get((_name(depth, window), ratio), {})
        for family in dict.fromkeys(families.values()):
            ids = [i for i in own if families[i] == family and i in none and i in full]
            if ids:
                kept = retention(
                    [none[i] for i in ids], [own[i] for i in ids], [full[i] for i in ids]
                )
                found.setdefault(family, []).append(kept)
    cut = [min(1.0, value) for values in found.values() for value in values if value == value]
    return Choice(
        layers=depth,
        window=window,
        retention=float(np.mean(cut)) if cut else float("nan"),
        families={family: round(float(np.nanmean(v)), 3) for family, v in found.items()},
        work=depth / num_layers + (1 - depth / num_layers) / 3,
    )
