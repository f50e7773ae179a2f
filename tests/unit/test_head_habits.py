"""What heads do whatever they are asked: a run of tokens read twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm.compress import kept_places, least_look_back, looks_back, run_twice
from qm_vllm.compress.head_habits import LOOKING_UP, QUERIES, RUN

HEADS, KV_HEADS, WIDTH, LENGTH = 6, 2, 8, 12


@given(vocabulary=st.integers(3, 300_000), most=st.integers(2, 4000))
def test_a_run_is_read_twice_and_fits(vocabulary, most):
    ids = run_twice(vocabulary, most)
    half = len(ids) // 2
    assert ids[:half] == ids[half:]
    assert half == min(RUN, most // 2)
    assert all(0 < one < vocabulary - 1 for one in ids)
    if vocabulary > 3000:
        assert len(set(ids)) > 0.9 * half


@pytest.mark.parametrize(("vocabulary", "most"), [(2, 100), (100, 1)])
def test_no_run_is_no_silence(vocabulary, most):
    with pytest.raises(ValueError, match="no run"):
        run_twice(vocabulary, most)


@given(length=st.integers(1, 500))
def test_queries_are_kept_all_over_the_run(length):
    places = list(kept_places(length))
    assert 0 < len(places) < 2 * QUERIES
    assert places == sorted(set(places))
    assert places[-1] < length
    assert places[-1] >= length - length // QUERIES - 1
    assert len(kept_places(RUN)) == QUERIES


@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_looking_back_is_what_one_token_after_another_says(seed, cap):
    make = torch.Generator().manual_seed(seed)
    queries = torch.randn(2 * LENGTH, HEADS, WIDTH, generator=make)
    keys = torch.randn(2 * LENGTH, KV_HEADS, WIDTH, generator=make)
    each, want = HEADS // KV_HEADS, []
    for head in range(HEADS):
        paid = 0.0
        for token in range(LENGTH):
            at = LENGTH + token
            logits = keys[: at + 1, head // each].double() @ queries[at, head].double() * 0.4
            weights = (torch.tanh(logits / cap) * cap if cap else logits).softmax(0)
            # The last token of the run has none behind it, and does not count.
            paid += float(weights[token] + weights[token + 1]) if token < LENGTH - 1 else 0.0
        want.append(paid / (LENGTH - 1))
    highest = [max(want[i : i + each]) for i in range(0, HEADS, each)]
    found = looks_back(queries, keys, 0.4, cap)
    assert found.tolist() == pytest.approx(highest, abs=1e-5)


def test_a_head_that_copies_looks_back_and_one_that_looks_nowhere_does_not():
    each = 10 * torch.nn.functional.one_hot(torch.arange(LENGTH)).float()
    keys = torch.cat((each, each))[:, None].repeat(1, 2, 1)
    keys[:, 1] = 0
    queries = keys.clone()
    queries[LENGTH:, 0] = each.roll(-1, 0)  # it looks at the token behind the earlier one
    found = looks_back(queries, keys, 1.0)
    assert found[0] > 0.95
    assert found[1] < 0.2


@given(seed=st.integers(0, 99), count=st.integers(1, 200))
def test_an_eighth_of_the_heads_look_things_up(seed, count):
    scores = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    reach = int((scores >= least_look_back(scores)).sum())
    assert reach == max(1, round(count / LOOKING_UP))
