"""Seconds and bins against rational arithmetic, and the best pairs against all pairs."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm_eval.datasets import time_bins
from qm_vllm_eval.datasets.time_bins import TimeBins, top_segments

SECONDS = st.floats(0.5, 5000)
COUNTS = st.integers(1, 3000)


def test_a_clip_of_ten_seconds_in_four_bins() -> None:
    bins = TimeBins(10.0, 4)
    assert bins.width == 2.5
    assert [bins.bin_at(t) for t in (0, 2.4, 2.5, 7.4, 9.9, 10)] == [0, 0, 1, 2, 3, 3]
    assert bins.to_bins(0, 10) == (0, 3)
    assert bins.to_bins(2.5, 5) == (1, 1)
    assert bins.to_bins(2.4, 5.1) == (0, 2)
    assert bins.to_seconds(1, 2) == (2.5, 7.5)


def test_windows_without_length_have_one_bin() -> None:
    bins = TimeBins(10.0, 4)
    assert [bins.to_bins(t, t) for t in (0, 2.5, 3, 10)] == [(0, 0), (1, 1), (1, 1), (3, 3)]


def test_times_outside_fall_into_the_first_and_the_last_bin() -> None:
    bins = TimeBins(10.0, 4)
    assert (bins.bin_at(-1), bins.bin_at(11)) == (0, 3)
    assert bins.to_bins(-5, 99) == (0, 3)
    assert bins.to_bins(20, 30) == (3, 3)


@given(SECONDS, COUNTS, st.data())
def test_bins_and_back_are_the_same_bins(seconds: float, count: int, data: Any) -> None:
    bins = TimeBins(seconds, count)
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first, count - 1))
    assert bins.to_bins(*bins.to_seconds(first, last)) == (first, last)


@given(SECONDS, COUNTS, st.data())
def test_a_window_is_within_its_bins_and_less_than_a_bin_shorter_on_each_side(
    seconds: float, count: int, data: Any
) -> None:
    bins = TimeBins(seconds, count)
    start = data.draw(st.floats(0, seconds))
    end = data.draw(st.floats(start, seconds))
    low, high = bins.to_seconds(*bins.to_bins(start, end))
    slack = 2e-6 * bins.width
    assert low <= start + slack
    assert high >= end - slack
    assert start - low < bins.width + slack
    assert high - end < bins.width + slack or start == end


@given(st.integers(1, 400), st.integers(1, 60), st.data())
def test_every_touched_bin_is_counted(frames: int, count: int, data: Any) -> None:
    """Against fractions: a bin is touched if it shares more than a point with the window."""
    start = data.draw(st.integers(0, frames - 1))
    end = data.draw(st.integers(start + 1, frames))
    width = Fraction(frames, count)
    touched = [i for i in range(count) if i * width < end and (i + 1) * width > start]
    assert TimeBins(frames / 30, count).to_bins(start / 30, end / 30) == (touched[0], touched[-1])


@pytest.mark.parametrize(
    ("seconds", "count", "message"),
    [
        (0.0, 4, "a clip of 0.0 seconds"),
        (-1.0, 4, "a clip of -1.0 seconds"),
        (math.nan, 4, "a clip of nan seconds"),
        (math.inf, 4, "a clip of inf seconds"),
        (1.0, 0, "0 bins; give at least one"),
    ],
)
def test_clips_without_bins_are_refused(seconds: float, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimeBins(seconds, count)


@pytest.mark.parametrize("window", [(2, 1), (math.nan, 1), (0, math.nan), (0, math.inf),
                                    (-math.inf, 0)])  # fmt: skip
def test_windows_that_are_none_are_refused(window: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="does not end after it starts"):
        TimeBins(10.0, 4).to_bins(*window)


@pytest.mark.parametrize("pair", [(-1, 0), (2, 1), (0, 4)])
def test_bins_outside_the_clip_are_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="are not in order within 4"):
        TimeBins(10.0, 4).to_seconds(*pair)


def all_pairs(
    starts: list[float], ends: list[float], count: int, longest: int | None
) -> list[tuple[int, int, float]]:
    pairs = [
        (first, last, starts[first] + ends[last])
        for first in range(len(starts))
        for last in range(first, len(ends))
        if (longest is None or last - first + 1 <= longest)
        and starts[first] + ends[last] > -math.inf
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))[: max(count, 0)]


# Few values, so that many pairs score the same.
SCORES = st.lists(
    st.tuples(st.sampled_from([-3.0, -1.0, -0.5, 0.0, -math.inf]), st.sampled_from([-2.0, -0.5,
              -math.inf])), min_size=1, max_size=25)  # fmt: skip
LONGEST, BLOCKS = st.none() | st.integers(1, 8), st.sampled_from([1, 7, 40, 1 << 22])


@given(SCORES, st.integers(0, 12), LONGEST, BLOCKS)
def test_the_best_segments_are_those_of_all_pairs(
    scores: list[tuple[float, float]], count: int, longest: int | None, block: int
) -> None:
    starts, ends = ([pair[side] for pair in scores] for side in (0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time_bins, "_BLOCK", block)
        assert top_segments(starts, ends, count, longest) == all_pairs(starts, ends, count, longest)


def test_many_bins_in_blocks() -> None:
    rng = np.random.default_rng(0)
    starts, ends = rng.standard_normal((2, 300))
    expected = all_pairs(list(starts), list(ends), 5, None)
    assert top_segments(starts, ends) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time_bins, "_BLOCK", 1000)
        assert top_segments(starts, ends) == expected


def test_tensors_give_what_lists_give() -> None:
    starts = torch.tensor([-1.0, -0.25, -3.0], requires_grad=True)
    ends = torch.tensor([-2.0, -0.5, -0.125], dtype=torch.bfloat16)
    expected = top_segments([-1.0, -0.25, -3.0], [-2.0, -0.5, -0.125], 2)
    assert top_segments(starts, ends, 2) == expected == [(1, 2, -0.375), (1, 1, -0.75)]


@pytest.mark.parametrize(
    ("starts", "ends", "message"),
    [
        ([0.0], [0.0, 0.0], "need the same bins twice"),
        ([], [], "need the same bins twice"),
        ([[0.0]], [[0.0]], r"of shape \(1, 1\)"),
        ([math.nan], [0.0], "without NaN"),
        ([0.0], [math.inf], "without NaN"),
    ],
)
def test_scores_that_are_none_are_refused(starts: Any, ends: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        top_segments(starts, ends)
