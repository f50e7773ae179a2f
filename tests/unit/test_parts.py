"""Prompts that are read in parts: nothing is left out, and what is kept adds up."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.messages import JobSpec
from qm_vllm.engine.parts import (
    LEAST,
    TAIL,
    budgets,
    longest_part,
    part_of,
    parted,
    places_needed,
    shares,
)


def spec_of(count: int, bounds: tuple[int, ...], **options: object) -> JobSpec:
    return JobSpec(
        id=1, key="k", token_ids=list(range(count)), config=QuickMergeConfig(**options),
        encoder_layers=4, score_layers=(1, 2), special_positions=[3], block_size=32,
        parts=bounds, hint=(7, 8),
    )


@given(st.integers(1, 200_000), st.integers(1, 40_000), st.integers(0, 2000))
def test_parts_cover_a_prompt_and_fit_with_what_stands_around_them(count, span, around):
    bounds = parted(count, span, around)
    if span - around < LEAST:
        assert bounds is None
        return
    assert bounds is not None
    assert (bounds[0], bounds[-1]) == (0, count)
    sizes = [stop - start for start, stop in pairwise(bounds)]
    assert max(sizes) + around <= span
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-count // (span - around))


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(0, 500)), min_size=1, max_size=9),
    st.integers(1, 4000),
)
def test_shares_add_up_and_hold_what_is_protected(parts, total):
    bounds, protected = [0], []
    for size, own in parts:
        bounds.append(bounds[-1] + size)
        protected.append(min(own, size))
    least = sum(max(1, own) for own in protected)
    assume(least <= total <= bounds[-1])
    kept = shares(total, bounds, protected)
    assert sum(kept) == total
    for count, floor, (start, stop) in zip(kept, protected, pairwise(bounds), strict=True):
        assert max(1, floor) <= count <= stop - start


@pytest.mark.parametrize(("options", "tail"), [
    ({}, TAIL), ({"query_visible": False, "hint": "x"}, 0), ({"saliency": "entropy"}, 0),
])
def test_a_part_stands_before_the_end_of_its_prompt(options, tail):
    spec = spec_of(3000, (0, 1000, 2000, 3000), **options)
    end = list(range(3000 - tail, 3000))
    first, middle, last = (part_of(spec, index) for index in range(3))
    assert first.token_ids == [*range(1000), *end]
    assert middle.token_ids == [*range(1000, 2000), *end]
    assert last.token_ids == list(range(2000, 3000))
    for own in (first, middle, last):
        assert own.hint == (7, 8)
        assert own.parts == own.turns == ()
    assert longest_part(spec) == 1000 + tail + 2


def test_a_part_comes_behind_what_was_kept_of_those_before():
    spec = spec_of(3000, (0, 1000, 2000, 3000), positions="compact", ratio=0.5)
    kept = budgets(spec)
    assert sum(kept) == 1473  # whole blocks of 32 and one
    assert places_needed(spec) == max(kept[0] + 1000 + TAIL, kept[0] + kept[1] + 1000) + 2
    source = spec_of(3000, (0, 1000, 2000, 3000), ratio=0.5)
    assert places_needed(source) == 3002  # the prompt's own positions


def test_a_job_that_runs_again_keeps_as_many_of_each_part():
    spec = spec_of(3000, (0, 1000, 2000, 3000), ratio=0.5)
    again = replace(spec, kept=(0, 1, 999, 1000, 2500))
    assert budgets(again) == [3, 1, 1]
