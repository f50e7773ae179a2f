"""3.2, 3.3 and 3.5: the sign of the saliency, norms as informativeness, Gumbel selection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qm_vllm.compress import attention_entropy, gumbel_softmax_mask, min_max, row_norms
from qm_vllm_eval.paper.claims.attention import COSINE, mean, spearman

CLEAR = 0.3
"""The rank correlation from which on "A correlates with B" is granted here."""


@dataclass(frozen=True)
class SignFigures:
    """The formula ``s = mean Normalize(H)`` against the text "favors sharp attention tokens".

    Attributes:
        overlap: share of the K = N / 2.4 tokens that both readings keep, mean over windows.
        chance: K / N, the overlap of two independent choices.
        effect_spearman: correlation of the text's reading (low entropy) with what dropping the
            token does to a real next layer; the formula's is minus that.
        holds: formula and text keep the same tokens.
    """

    overlap: float
    chance: float
    effect_spearman: float
    holds: bool


@dataclass(frozen=True)
class NormFigures:
    """Rank correlations of the norm of a state with three meanings of "informative".

    Attributes:
        effect: with what dropping the token does to a real next layer, mean over windows.
        effect_lowest: the lowest of them.
        surprisal: with -log p of the token under its own model; None for encoders.
        surprisal_entropy: the same of low attention entropy; None for encoders.
        holds: every given mean is at least 0.3.
    """

    effect: float
    effect_lowest: float
    surprisal: float | None
    surprisal_entropy: float | None
    holds: bool


@dataclass(frozen=True)
class GumbelFigures:
    """What noise of scale 1 leaves of scores in [0, 1] (eq. 3).

    Attributes:
        span: largest minus smallest score, mean over windows; the noise deviates by 1.28.
        overlap: share of the K = N / 2.4 best that are among the best K with noise.
        chance: K / N.
        best_first: probability that one draw of eq. 3-4 picks the best-scored token, at any
            temperature: ``exp(s_max) / sum exp(s_j)``; 1 / N is chance.
        best_first_chance: 1 / N.
        mass_of_one_draw: sum of M for one draw of eq. 4 at temperature -> 0: one token, not K.
        repeatable: two seeds keep the same tokens.
        holds: overlap is at least 0.9: the selection follows the saliency.
    """

    span: float
    overlap: float
    chance: float
    best_first: float
    best_first_chance: float
    mass_of_one_draw: float
    repeatable: bool
    holds: bool


def formula(layers: Sequence[Tensor], scale: float = COSINE) -> Tensor:
    """s of 3.2 to the letter, high entropy = high score: [N] float32, Normalize = min-max."""
    return torch.stack([min_max(attention_entropy(states, scale)) for states in layers]).mean(0)


def check_sign(
    windows: Sequence[Sequence[Tensor]], effects: Sequence[tuple[Tensor, Tensor]],
    ratio: float = 2.4,
) -> SignFigures:
    """Compare both readings.

    Args:
        windows: states [N, D] of each layer.
        effects: pairs of states [N, D] that enter a layer and c_i [N] of dropping token i
            (:func:`qm_vllm_eval.paper.claims.merge_risk.leave_one_out`).
    """
    overlaps, shares = [], []
    for layers in windows:
        score = formula(layers)
        count = math.ceil(len(score) / ratio)
        overlaps.append(_overlap(_best(score, count), _best(1 - score, count)))
        shares.append(count / len(score))
    return SignFigures(
        overlap=mean(overlaps),
        chance=mean(shares),
        effect_spearman=mean([
            spearman(-attention_entropy(states, COSINE), effect) for states, effect in effects
        ]),
        holds=min(overlaps) >= 1,
    )


def check_norm(
    effects: Sequence[tuple[Tensor, Tensor]],
    surprisals: Sequence[tuple[Tensor, Tensor]] = (),
) -> NormFigures:
    """Is the norm a sign of informativeness (the assumption of 3.5)?

    Args:
        effects: as in :func:`check_sign`.
        surprisals: pairs of states [N, D] and -log p of each token [N], nats; the first token
            of a text has none and must be left out.
    """
    effect = [spearman(row_norms(states), change) for states, change in effects]
    surprisal = [spearman(row_norms(states), bits) for states, bits in surprisals]
    entropy = [
        spearman(-attention_entropy(states, COSINE), bits) for states, bits in surprisals
    ]
    means = [mean(effect), *([mean(surprisal)] if surprisal else [])]
    return NormFigures(
        effect=means[0],
        effect_lowest=min(effect),
        surprisal=mean(surprisal) if surprisal else None,
        surprisal_entropy=mean(entropy) if entropy else None,
        holds=min(means) >= CLEAR,
    )


def check_gumbel(
    scores: Sequence[Tensor], ratio: float = 2.4, draws: int = 20, seed: int = 0
) -> GumbelFigures:
    """Measure eq. 3-4 on saliencies [N] in [0, 1].

    Args:
        draws: noisy selections for each window.
    """
    generator = torch.Generator().manual_seed(seed)
    overlaps, shares, firsts, spans, sums = [], [], [], [], []
    same = True
    for score in scores:
        count = math.ceil(len(score) / ratio)
        best = _best(score, count)
        drawn = [
            _best(gumbel_softmax_mask(score, count, 1.0, generator, hard=True), count)
            for _ in range(draws)
        ]
        overlaps += [_overlap(best, kept) for kept in drawn]
        same = same and all(torch.equal(kept, drawn[0]) for kept in drawn)
        shares.append(count / len(score))
        firsts.append(best_first(score))
        spans.append(float(score.max() - score.min()))
        sums.append(float(one_draw(score, 1e-4, generator).sum()))
    return GumbelFigures(
        span=mean(spans),
        overlap=mean(overlaps),
        chance=mean(shares),
        best_first=mean(firsts),
        best_first_chance=mean([1 / len(score) for score in scores]),
        mass_of_one_draw=mean(sums),
        repeatable=same,
        holds=mean(overlaps) >= 0.9,
    )


def one_draw(score: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Eq. 3 to the letter: ``softmax((s + g) / temperature)`` over all tokens, [N] float64."""
    noise = torch.empty_like(score, dtype=torch.float64).exponential_(generator=generator)
    return ((score.double() - noise.log()) / temperature).softmax(0)


def best_first(score: Tensor) -> float:
    """Probability that the noise of eq. 3 leaves the largest score first (Gumbel-max)."""
    return float(score.double().softmax(0).max())


def _best(score: Tensor, count: int) -> Tensor:
    return score.sort(descending=True, stable=True).indices[:count].sort().values


def _overlap(one: Tensor, two: Tensor) -> float:
    return float(torch.isin(one, two).double().mean())
