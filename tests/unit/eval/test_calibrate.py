"""The choice of a depth from measured retentions."""

from __future__ import annotations

import pytest

from qm_vllm_eval.row import Row
from qm_vllm_eval.study.calibrate import RATIOS, Choice, _name, _summary, choices, choose, depths


def depth(layers: int, retention: float, window: int = 2) -> Choice:
    return Choice(layers, window, retention, {}, layers / 30)


@pytest.mark.parametrize("layers", [2, 6, 12, 18, 30, 32, 80])
def test_depths_increase_and_are_few(layers):
    tried = depths(layers)
    assert tried == sorted(set(tried))
    assert tried[0] >= 2
    assert tried[-1] <= layers
    assert len(tried) <= 20
    assert choices(layers)[0] == (tried[0], 2)
    assert all(window <= depth for depth, window in choices(layers))


def test_the_shallowest_within_the_tolerance_wins():
    measured = [depth(10, 0.5), depth(15, 0.93), depth(18, 0.94), depth(22, 0.945)]
    assert choose(measured).layers == 15
    assert choose([*measured, depth(25, 0.96)]).layers == 18
    assert choose(measured[:1]).layers == 10
    assert choose([*measured, depth(15, 0.94, 4)]).window == 4


def row(method: str, ratio: float, sample: str, nll: float, family: str) -> Row:
    nan = float("nan")
    return Row(
        sample_id=sample, task=family, family=family, query_visible=True, haystack="", length=1,
        index=0, method=method, ratio=ratio, prompt_tokens=1, kept_tokens=1, kept_ratio=1, nll=nll,
        exact=nan, match=nan, kv_bytes=nan, seconds=nan, prediction="", target="",
    )


def test_retention_is_the_mean_over_families_and_ratios_cut_at_one():
    rows = []
    for sample, family in (("a", "needle"), ("b", "recall")):
        rows += [row("none", 0.0, sample, 4.0, family), row("plain", 1.0, sample, 2.0, family)]
    for ratio, a, b in ((RATIOS[0], 1.0, 2.0), (RATIOS[1], 3.0, 4.0)):
        name = _name(5, 2)
        rows += [row(name, ratio, "a", a, "needle"), row(name, ratio, "b", b, "recall")]
    found = _summary(rows, 5, 2, 10)
    assert found.families == {"needle": 1.0, "recall": 0.5}  # (1.5 + 0.5) / 2 and (1 + 0) / 2
    assert found.retention == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert found.work == pytest.approx(0.5 + 0.5 / 3)
