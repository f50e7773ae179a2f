"""Appendix "Complexity Analysis": operations counted, and their growth timed.

A multiplication with its addition is two operations. Element-wise work is left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from qm_vllm.compress import attention_entropy, gumbel_softmax_mask, soft_merge
from qm_vllm_eval.paper.claims.ned import isotropic

SIZES = (2048, 4096, 8192)
"""N of the timings, tokens."""


@dataclass(frozen=True)
class FlopFigures:
    """Operations of one prefill by a decoder after merging N to K.

    Attributes:
        attention_speedup: of the products Q K^T and A V alone; (N/K)^2, the paper's figure.
        layer_speedup: of whole decoder layers (with projections and MLP).
        score_over_saved_attention: products of eq. 1 in all encoder layers, over the attention
            products that the decoder saves. Above 1 the score costs more than that saving.
        speedup_with_score: whole decoder layers over (score + merge + layers on K tokens).
        speedup_with_half_score: the same where X X^T is computed once for both triangles.
        holds: attention_speedup is (N/K)^2 and the score's products are at most 10 % of it.
    """

    attention_speedup: float
    layer_speedup: float
    score_over_saved_attention: float
    speedup_with_score: float
    speedup_with_half_score: float
    holds: bool


@dataclass(frozen=True)
class TimeFigures:
    """Slopes of log time over log N, and the times in ms at the largest N; processor time.

    Attributes:
        sizes: the N timed.
        saliency, merge, attention: slopes of eq. 1-2, of eq. 3-4 with the merge, and of one
            attention of a decoder of the same width.
        saliency_ms, merge_ms, attention_ms: at the largest N.
        holds: the saliency's slope is at most 1.3, as O(N D) would have it.
    """

    sizes: tuple[int, ...]
    saliency: float
    merge: float
    attention: float
    saliency_ms: float
    merge_ms: float
    attention_ms: float
    holds: bool


def attention_products(count: int, width: int) -> int:
    """Q K^T and A V of one layer: 4 N^2 D, all heads together, without causal skipping."""
    return 4 * count**2 * width


def layer_products(count: int, width: int, inner: int | None = None) -> int:
    """One decoder layer: four projections, attention, MLP of two matrices D x inner (4 D)."""
    inner = 4 * width if inner is None else inner
    return 8 * count * width**2 + attention_products(count, width) + 4 * count * width * inner


def saliency_products(count: int, width: int) -> int:
    """X X^T of eq. 1 in one layer: 2 N^2 D. Half of it if the symmetry is used."""
    return 2 * count**2 * width


def merge_products(count: int, width: int) -> int:
    """The weighted means of 3.3: 2 N D."""
    return 2 * count * width


def count_flops(
    count: int, kept: int, *, width: int = 512, layers: int = 6, encoder_width: int = 768,
    encoder_layers: int = 12,
) -> FlopFigures:
    """Operations for the paper's set-up (4.1): a 6-layer decoder of width 512 behind BERT-base.

    Args:
        count, kept: N and K, tokens.
    """
    before, after = (layers * layer_products(n, width) for n in (count, kept))
    score = encoder_layers * saliency_products(count, encoder_width)
    saved = layers * (attention_products(count, width) - attention_products(kept, width))
    speedup = attention_products(count, width) / attention_products(kept, width)
    rest = after + merge_products(count, encoder_width)
    return FlopFigures(
        attention_speedup=speedup,
        layer_speedup=before / after,
        score_over_saved_attention=score / saved,
        speedup_with_score=before / (rest + score),
        speedup_with_half_score=before / (rest + score / 2),
        holds=math.isclose(speedup, (count / kept) ** 2) and score <= 0.1 * saved,
    )


def time_growth(
    sizes: Sequence[int] = SIZES, *, width: int = 384, ratio: float = 2.4, repeats: int = 3
) -> TimeFigures:
    """Time the parts on normal random rows, float32, best of ``repeats``; processor time.

    Args:
        sizes: N, ascending, two or more.
        width: D.
        ratio: N / K of the merge.
    """
    times: dict[str, list[float]] = {"saliency": [], "merge": [], "attention": []}
    for count in sizes:
        states = isotropic(count, width, seed=count).float()
        scores = torch.rand(count, generator=torch.Generator().manual_seed(0))
        kept = math.ceil(count / ratio)
        groups = torch.arange(count) * kept // count
        heads = states.view(1, count, width // 64, 64).transpose(1, 2)
        parts: dict[str, Callable[[], object]] = {
            "saliency": partial(attention_entropy, states, 24.0),
            "merge": partial(_merge, states, scores, groups, kept),
            "attention": partial(functional.scaled_dot_product_attention, heads, heads, heads),
        }
        for name, call in parts.items():
            times[name].append(_best(call, repeats))
    slopes = {name: slope(sizes, found) for name, found in times.items()}
    return TimeFigures(
        sizes=tuple(sizes),
        saliency=slopes["saliency"],
        merge=slopes["merge"],
        attention=slopes["attention"],
        saliency_ms=1e3 * times["saliency"][-1],
        merge_ms=1e3 * times["merge"][-1],
        attention_ms=1e3 * times["attention"][-1],
        holds=slopes["saliency"] <= 1.3,
    )


def slope(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Least-squares slope of log time over log size."""
    x = torch.tensor(sizes, dtype=torch.float64).log()
    y = torch.tensor(times, dtype=torch.float64).log()
    x = x - x.mean()
    return float(x @ (y - y.mean()) / (x @ x))


def _merge(states: Tensor, scores: Tensor, groups: Tensor, kept: int) -> Tensor:
    mask = gumbel_softmax_mask(scores, kept, 0.5, torch.Generator().manual_seed(1))
    return soft_merge(states, mask, scores, groups, kept, 0.01)


def _best(call: Callable[[], object], repeats: int) -> float:
    call()
    found = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        found.append(time.process_time() - started)
    return min(found)
