"""3.3, 4.1 and 4.2: does an entropy threshold give complex inputs more, long ones less?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from qm_vllm.compress import (
    absolute,
    attention_entropy,
    choose_budget,
    group_tokens,
    min_max,
    select,
)
from qm_vllm.config import QuickMergeConfig
from qm_vllm_eval.paper.claims.attention import COSINE, LETTER, mean

ALPHA = 0.45
"""The paper's threshold (4.1)."""
READINGS = ("absolute", "min-max", "formula")
"""What is compared with alpha: ``1 - H / log N`` (the library), ``1 - minmax(H)``, and the
paper's formula ``minmax(H)``; means over layers."""

Windows = Sequence[Sequence[Tensor]]


@dataclass(frozen=True)
class BudgetFigures:
    """Mean K / N at alpha = 0.45, by source, for each reading.

    Attributes:
        shares: reading, then source, in the given order.
        rises: per reading: each source keeps more than the one before it.
        falls: per reading: less than the one before it.
    """

    shares: dict[str, dict[str, float]]
    rises: dict[str, bool]
    falls: dict[str, bool]


@dataclass(frozen=True)
class OrderFigures:
    """How many groups of the cosine grouping have tokens of another group between theirs.

    Attributes:
        interleaved: that share, mean over windows: a set of clusters has no order of its own.
        holds: kept positions rise strictly, in every window (as the library writes them).
    """

    interleaved: float
    holds: bool


def kept_shares(
    layers: Sequence[Tensor], alpha: float = ALPHA, scale: float | None = COSINE
) -> dict[str, float]:
    """K / N of one window by each reading.

    Args:
        layers: states [N, D] of the layers that eq. 1 is taken from.
        scale: as in :func:`qm_vllm_eval.paper.claims.attention.attention`.
    """
    count = layers[0].shape[0]
    entropies = [
        attention_entropy(states, scale or COSINE, normalize_rows=scale is not LETTER)
        for states in layers
    ]
    relative = torch.stack([1 - min_max(layer) for layer in entropies]).mean(0)
    scores = {
        "absolute": torch.stack([1 - absolute(layer, count) for layer in entropies]).mean(0),
        "min-max": relative,
        "formula": 1 - relative,
    }
    config = QuickMergeConfig(alpha=alpha)
    return {
        name: choose_budget(config, count, score) / count for name, score in scores.items()
    }


def check_budget(
    sources: Mapping[str, Windows], alpha: float = ALPHA, scale: float | None = COSINE
) -> BudgetFigures:
    """K / N over sources, given from the least to the most complex, or from short to long."""
    shares: dict[str, dict[str, float]] = {name: {} for name in READINGS}
    for source, windows in sources.items():
        found = [kept_shares(layers, alpha, scale) for layers in windows]
        for name in READINGS:
            shares[name][source] = mean([one[name] for one in found])
    rows = {name: list(row.values()) for name, row in shares.items()}
    return BudgetFigures(
        shares=shares,
        rises={name: all(a < b for a, b in pairwise(row)) for name, row in rows.items()},
        falls={name: all(a > b for a, b in pairwise(row)) for name, row in rows.items()},
    )


def check_order(windows: Sequence[Tensor], ratio: float = 2.4) -> OrderFigures:
    """Group states [N, D] by cosine within 64 positions; count interleaved groups."""
    shares, ordered = [], True
    for states in windows:
        count = max(1, round(len(states) / ratio))
        score = 1 - min_max(attention_entropy(states, COSINE))
        kept = select(score, count, torch.zeros(len(states), dtype=torch.bool))
        ordered = ordered and bool((kept.diff() > 0).all())
        groups = group_tokens(states, kept, QuickMergeConfig(grouping="knn"))
        shares.append(interleaved(groups))
    return OrderFigures(interleaved=mean(shares), holds=ordered)


def interleaved(groups: Tensor) -> float:
    """Share of the groups of several tokens that are no run: int64 [N], values 0..K-1."""
    several = broken = 0
    for group in range(int(groups.max()) + 1):
        places = (groups == group).nonzero().flatten()
        if len(places) > 1:
            several += 1
            broken += int(places[-1] - places[0] + 1 != len(places))
    return broken / several if several else 0.0
