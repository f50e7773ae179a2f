"""The one choice of tokens: each rule of the budget, what is measured, and what is read."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm.compress import (
    SALIENCIES,
    Evidence,
    absolute_saliency,
    choose,
    needs,
    protected_positions,
    score_tokens,
    select,
    sizes_between,
)
from qm_vllm.compress.choice import keeps_all
from qm_vllm.config import ConfigError, QuickMergeConfig
from tests.unit import helpers
from tests.waits import Waits


def evidence(n: int, config: QuickMergeConfig) -> Evidence:
    x = helpers.states(n)
    return Evidence.from_states(
        x, [x], logit_scale=config.logit_scale, needs=needs(config),
        **helpers.seen(n),
    )


class Falling:
    """An attention error of ``1 - K / N``; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, order: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        self.asked.append(list(sizes))
        return 1 - torch.tensor(sizes) / order.shape[0]


@pytest.mark.parametrize("saliency", SALIENCIES)
def test_a_choice_is_the_best_scores_beside_the_protected(saliency):
    config = QuickMergeConfig(saliency=saliency, ratio=0.3, protect_last=9)
    seen, protected = evidence(150, config), protected_positions(config, 150, special=[70])
    choice = choose(seen, config, protected=protected)
    assert torch.equal(choice.scores, score_tokens(seen, config))
    assert torch.equal(choice.kept, select(choice.scores, 45, protected))
    assert torch.equal(choice.kept, choice.order[:45].sort().values)
    assert sorted(choice.order.tolist()) == list(range(150))
    assert (choice.k, choice.protected, choice.crowded, choice.error) == (45, 14, False, None)


@given(st.data())
def test_k_follows_every_rule_at_once(data):
    n = data.draw(st.integers(1, 120))
    config = QuickMergeConfig(
        saliency="norm", protect_first=0, protect_last=data.draw(st.integers(1, 6)),
        ratio=data.draw(st.none() | st.floats(0.01, 1)),
        alpha=data.draw(st.none() | st.floats(0, 1)),
        max_error=data.draw(st.none() | st.floats(0, 1)),
        min_kept=data.draw(st.integers(1, 30)),
        max_kept=data.draw(st.none() | st.integers(40, 130)),
    )
    block = data.draw(st.none() | st.integers(1, 8))
    seen, errors = evidence(n, config), Falling()
    protected = protected_positions(config, n)
    choice = choose(seen, config, protected=protected, block_size=block, errors=errors)
    wanted = [math.ceil(config.ratio * n - 1e-9)] if config.ratio is not None else []
    if config.alpha is not None:
        wanted.append(int((absolute_saliency(seen) >= config.alpha).sum()))
    if config.max_error is not None:
        sizes = sizes_between(choice.protected, n, block)
        limit = torch.tensor(config.max_error)
        wanted.append(min(size for size in sizes if 1 - torch.tensor(size) / n <= limit))
    if not wanted and config.max_kept is None:
        wanted = [math.ceil(0.4 * n - 1e-9)]
    k = max(min(wanted, default=n), config.min_kept, choice.protected)
    k = min(k, config.max_kept or n, n)
    if block is None:
        assert choice.k == k
    else:
        assert choice.k == n or (choice.k - 1) % block == 0
        assert abs(choice.k - k) < block or choice.k in (n, block + 1)
    assert bool(protected[choice.kept].sum() == choice.protected)
    assert float(choice.error) == pytest.approx(1 - choice.k / n)


def test_a_cap_that_the_rounded_budget_breaks_is_an_error():
    config = QuickMergeConfig(saliency="norm", max_kept=40, protect_first=4, protect_last=32)
    seen, protected = evidence(300, config), protected_positions(config, 300, special=[99])
    assert choose(seen, config, protected=protected).k == 40
    words = "max_kept=40 is too small: 37 positions are protected and 49 would be kept"
    with pytest.raises(ConfigError, match=words):
        choose(seen, config, protected=protected, block_size=16)


def test_the_error_of_the_choice_is_measured_once():
    config = QuickMergeConfig(saliency="norm", max_error=0.5, protect_last=8)
    seen, protected = evidence(200, config), protected_positions(config, 200)
    errors = Falling()
    choice = choose(seen, config, protected=protected, errors=errors)
    assert errors.asked == [sizes_between(12, 200)]
    assert float(choice.error) == pytest.approx(1 - choice.k / 200)
    assert 0.4 < float(choice.error) <= 0.5
    for other in ({"ratio": 0.25, "max_error": None}, {"ratio": 0.25, "max_error": 0.01}):
        errors = Falling()
        changed = QuickMergeConfig.from_dict(config.to_dict() | other)
        assert float(choose(seen, changed, protected=protected, errors=errors).error) == 0.75
        assert errors.asked[-1] == [50]
    with pytest.raises(ValueError, match=r"max_error=0\.5 needs the measured error"):
        choose(seen, config, protected=protected)


def test_a_fixed_budget_takes_the_place_of_the_configured_one():
    config = QuickMergeConfig(
        saliency="norm", ratio=0.9, alpha=0.2, max_error=0.1, max_kept=50, protect_last=9
    )
    seen, protected = evidence(200, config), protected_positions(config, 200)
    assert choose(seen, config, protected=protected, k=77).k == 77
    least = choose(seen, config, protected=protected, k=5, block_size=16)
    assert (least.k, least.crowded) == (13, True)
    assert least.kept.tolist() == protected.nonzero()[:, 0].tolist()
    for k in (0, 201):
        with pytest.raises(ValueError, match=f"k={k} must be between 1 and the 200"):
            choose(seen, config, protected=protected, k=k)


def test_a_choice_made_before_is_made_again_whatever_the_scores():
    config = QuickMergeConfig(saliency="norm", ratio=0.1, max_kept=40, protect_last=9)
    seen, protected = evidence(200, config), protected_positions(config, 200)
    before, errors = [0, *range(60, 140)], Falling()
    choice = choose(seen, config, protected=protected, block_size=16, kept=before, errors=errors)
    assert choice.kept.tolist() == choice.order[:81].tolist() == before
    assert sorted(choice.order.tolist()) == list(range(200))
    assert errors.asked == [[81]]
    for wrong in ([], [3, 3], [5, 4], [-1, 3], [7, 200]):
        with pytest.raises(ValueError, match=r"increasing positions in \[0, 200\)"):
            choose(seen, config, protected=protected, kept=wrong)
    with pytest.raises(ValueError, match="kept left out"):
        choose(seen, config, protected=protected, kept=before, k=81)


def test_crowded_means_that_no_score_chose_anything():
    def crowded(n: int, **fields):
        config = QuickMergeConfig(saliency="norm", **fields)
        return choose(evidence(n, config), config, protected=protected_positions(config, n)).crowded

    assert crowded(100, ratio=0.36)
    assert not crowded(100, ratio=0.37)
    assert not crowded(30, ratio=0.1)  # every token is protected: there is nothing to choose


def test_scores_that_are_not_finite_are_refused_unless_nobody_looks(monkeypatch):
    config = QuickMergeConfig(saliency="norm", ratio=0.5, protect_last=8)
    seen, protected = evidence(50, config), protected_positions(config, 50)
    broken = replace(SALIENCIES["norm"], score=lambda *_: torch.full((50,), torch.nan))
    monkeypatch.setitem(SALIENCIES, "norm", broken)
    with pytest.raises(ValueError, match="scores must be finite"):
        choose(seen, config, protected=protected)
    assert choose(seen, config, protected=protected, check=False).k == 25


@pytest.mark.parametrize("saliency", SALIENCIES)
def test_without_a_check_only_the_mask_on_the_host_is_read(saliency):
    config = QuickMergeConfig(saliency=saliency, ratio=0.5)
    seen, protected = evidence(200, config), protected_positions(config, 200)
    uploads = []

    def upload(tensor, device):
        uploads.append((tensor.dtype, tuple(tensor.shape), device.type))
        return tensor.to(device)

    with Waits() as waits:
        choose(
            seen, config, protected=protected, block_size=16, errors=Falling(), upload=upload,
            check=False,
        )
    assert waits.names == ["__int__"]
    assert uploads == [(torch.bool, (200,), "cpu")]


def test_a_prompt_that_stays_whole_is_known_before_it_is_scored():
    assert keeps_all(QuickMergeConfig(ratio=1.0), 100, 0)
    assert keeps_all(QuickMergeConfig(alpha=0.5), 36, 36)
    assert not keeps_all(QuickMergeConfig(alpha=0.0), 100, 36)
    assert not keeps_all(QuickMergeConfig(), 100, 36)
    with pytest.raises(ConfigError, match="cannot hold the 80 protected"):
        keeps_all(QuickMergeConfig(max_kept=60, protect_last=8), 100, 80)
