"""How many tokens layers keep, where some keep more: the entries stay as many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm.compress import layer_sizes, looking_layers
from qm_vllm.engine.native.blocks import first_blocks, group_sizes, own_blocks


@pytest.mark.parametrize(("layers", "count"), [
    (1, 0), (2, 1), (3, 1), (4, 1), (6, 2), (7, 0), (24, 8), (26, 13), (28, 7), (30, 10), (32, 8),
    (36, 12), (40, 10), (48, 16), (61, 0), (64, 16), (80, 20),
])
def test_a_third_or_so_looks_things_up_and_divides_all(layers, count):
    scores = [(7 * layer) % layers for layer in range(layers)]
    chosen = looking_layers(scores)
    assert sum(chosen) == count
    assert not count or layers % count == 0
    others = [score for score, one in zip(scores, chosen, strict=True) if not one]
    assert all(score > max(others) for score, one in zip(scores, chosen, strict=True) if one)


def test_of_equal_layers_the_lower_ones_look_things_up():
    assert looking_layers([0.5] * 6) == [True, True, False, False, False, False]


@given(
    k=st.integers(1, 3000), more=st.integers(0, 3000), least=st.integers(0, 500),
    others=st.integers(1, 5), share=st.floats(0.0, 0.9), step=st.sampled_from([1, 16, 128]),
)
def test_sizes_have_the_mean_and_the_bounds(k, more, least, others, share, step):
    tokens, least = k + more, min(least, k)
    large, small = layer_sizes(k, tokens, least, others, share, step)
    assert large + others * small == (others + 1) * k
    assert least <= small <= k <= large <= tokens
    assert (k - small) % step == 0
    # One step more or less is not nearer to the share, where it fits.
    def off(large):
        return abs(large / (k * (others + 1)) - share)

    up, down = large + others * step, large - others * step
    if up <= tokens and small - step >= least:
        assert off(up) >= off(large) - 1e-9
    if down >= k:
        assert off(down) >= off(large) - 1e-9


def test_without_others_all_keep_as_many():
    assert layer_sizes(100, 1000, 10, 0, 0.6) == (100, 100)


@given(
    kept=st.integers(1, 40), blocks=st.integers(0, 60), protected=st.integers(1, 200),
    keep_less=st.sampled_from([(True, False), (False, True, True), (False,), (True, True)]),
    size=st.sampled_from([16, 32]),
)
def test_groups_begin_at_whole_blocks_and_take_as_many_in_all(
    kept, blocks, protected, keep_less, size
):
    k, tokens = kept * size + 1, (kept + blocks) * size + 5
    sizes = group_sizes(k, tokens, protected, size, keep_less, 0.6)
    windows = [None] * len(keep_less)
    if not sizes:
        return
    assert sum(sizes) == k * len(keep_less)
    assert min(sizes) >= protected
    assert sum(own_blocks(max(sizes), windows, size, sizes)) == kept * len(keep_less)
    for own, first, less in zip(
        sizes, first_blocks(max(sizes), windows, size, sizes), keep_less, strict=True
    ):
        assert first * size == max(sizes) - own
        assert bool(first) is less


def test_where_all_is_kept_or_nothing_keeps_less_groups_are_alike():
    assert group_sizes(1000, 1000, 40, 16, (True, False), 0.6) == ()
    assert group_sizes(400, 1000, 40, 16, (False, False), 0.6) == ()
    assert group_sizes(400, 1000, 40, 16, (True, True), 0.6) == ()
