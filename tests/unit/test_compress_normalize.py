"""Normalisation of scores."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm.compress import absolute, average_rank, min_max


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=40))
def test_average_rank_counts_the_smaller_and_half_of_the_equal(values):
    expected = [
        (sum(o < v for o in values) + (sum(o == v for o in values) - 1) / 2) / (len(values) - 1)
        for v in values
    ]
    got = average_rank(torch.tensor(values, dtype=torch.float32))
    assert got.dtype == torch.float32
    assert torch.allclose(got, torch.tensor(expected, dtype=torch.float32))


def test_average_rank_of_one_and_of_equals():
    assert average_rank(torch.tensor([3.0])).tolist() == [1.0]
    assert average_rank(torch.zeros(5)).tolist() == [0.5] * 5
    assert average_rank(torch.tensor([0.0, -0.0])).tolist() == [0.5, 0.5]


def test_min_max():
    assert min_max(torch.tensor([2.0, 4.0, 3.0])).tolist() == [0.0, 1.0, 0.5]
    for noise in (0.0, 5e-7):
        assert min_max(torch.tensor([7.0, 7.0 + noise, 7.0])).tolist() == [0.5] * 3
    assert min_max(torch.tensor([0.0, 1e-20])).tolist() == [0.0, 1.0]


def test_absolute():
    assert absolute(torch.tensor([0.0, math.log(8)]), 8).tolist() == [0.0, 1.0]
    assert absolute(torch.tensor([0.0]), 1).tolist() == [0.0]
    with pytest.raises(ValueError, match="num_tokens=0"):
        absolute(torch.zeros(0), 0)
