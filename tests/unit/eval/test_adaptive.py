"""Adaptive budgets against a fixed one: the thresholds, the mean, the oracle."""

from __future__ import annotations

import numpy as np
import pytest

from qm_vllm_eval.study.adaptive import FIXED, ORACLE, Curve, compare, rank_correlation

RATIOS = (0.05, 0.1, 0.2, 0.4)


def curve(family: str, need: float, signal: float) -> Curve:
    """A prompt that has lost nothing from the share ``need`` on, and everything below it."""
    nll = np.array([4.0 if ratio < need else 2.0 for ratio in RATIOS])
    return Curve(family, 4.0, 2.0, nll, {"seen": signal / np.asarray(RATIOS)})


def test_a_signal_that_knows_the_need_beats_a_fixed_share():
    curves = [curve("easy", 0.05, 1.0), curve("hard", 0.4, 8.0)]
    found = {one.policy: one for one in compare(curves, RATIOS, [0.22])}
    assert found[FIXED].retention < 0.6
    assert found["seen"].retention == pytest.approx(1.0, abs=0.05)
    assert found[ORACLE].loss <= found["seen"].loss
    assert found["seen"].shares["hard"] > 4 * found["seen"].shares["easy"]
    for one in found.values():
        assert one.share == pytest.approx(0.22, abs=0.02)


def test_a_signal_that_says_nothing_gives_everybody_the_same():
    curves = [curve("easy", 0.05, 1.0), curve("hard", 0.4, 1.0)]
    found = {one.policy: one for one in compare(curves, RATIOS, [0.1])}
    assert found["seen"].retention == pytest.approx(found[FIXED].retention, abs=0.02)


def test_rank_correlation_of_ordered_and_reversed():
    assert rank_correlation([1, 2, 3, 9], [2, 4, 5, 6]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 9], [6, 5, 4, 2]) == pytest.approx(-1)
