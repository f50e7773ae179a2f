"""Fidelity figures, and the counterexample to the paper's bound."""

from __future__ import annotations

import pytest
import torch

from qm_vllm.compress import (
    gamma,
    group_tokens,
    merge_states,
    reconstruction_error,
    retained_norm,
    zero_padded_error,
)
from qm_vllm.config import MERGES, QuickMergeConfig
from tests.unit import helpers


def test_gamma_and_retained_norm():
    norms = torch.tensor([1.0, 4.0, 3.0, 2.0])
    assert gamma(norms, 2) == pytest.approx(0.7)
    assert gamma(norms, 4) == 1.0
    assert gamma(norms, 0) == 0.0
    assert retained_norm(norms, torch.tensor([0, 1])) == pytest.approx(0.5)
    assert gamma(torch.zeros(3), 1) == 1.0
    with pytest.raises(ValueError, match="k=5"):
        gamma(norms, 5)


def test_reconstruction_error():
    x = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 2.0]])
    merged, groups = torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1, 1])
    assert reconstruction_error(x, merged, groups) == pytest.approx((2 / 29) ** 0.5)
    assert reconstruction_error(x, x, torch.arange(3)) == 0.0
    assert reconstruction_error(torch.zeros(2, 2), torch.zeros(1, 2), torch.zeros(2).long()) == 0
    big = helpers.states(5000, 4)
    direct = (big - big[:1]).norm() / big.norm()
    one = torch.zeros(5000, dtype=torch.long)
    assert reconstruction_error(big, big[:1], one) == pytest.approx(float(direct), rel=1e-5)
    with pytest.raises(ValueError, match="groups must be"):
        reconstruction_error(x, merged, groups[1:])


def test_zero_padded_error():
    x = torch.tensor([[3.0], [4.0]])
    assert zero_padded_error(x, torch.tensor([1])) == pytest.approx(0.6)
    assert zero_padded_error(torch.zeros(2, 1), torch.tensor([1])) == 0.0


def test_the_bound_of_the_paper_does_not_hold():
    """Equal norms, zero padding: the squared error is 1 - gamma, not (1 - gamma)^2 (3.5)."""
    x = torch.eye(10)
    kept = torch.arange(4)
    share = gamma(x.norm(dim=1), 4)
    error = zero_padded_error(x, kept) ** 2
    assert share == pytest.approx(0.4)
    assert error == pytest.approx(1 - share)
    assert error > (1 - share) ** 2 + 0.2


@pytest.mark.parametrize("merge", MERGES)
def test_first_line_of_appendix_b_holds_with_unit_masses(merge):
    x = helpers.states(80)
    kept = torch.arange(0, 80, 7)
    config = QuickMergeConfig(merge=merge)
    groups = group_tokens(x, kept, config)
    merged = merge_states(x, kept, groups, torch.rand(80), config)
    right = (x - merged[groups]).square().sum()
    left = (reconstruction_error(x, merged, groups) * x.norm()) ** 2
    assert float(left) == pytest.approx(float(right), rel=1e-4)


def test_plain_means_are_the_best_representatives_of_their_groups():
    x = helpers.states(80)
    kept = torch.arange(0, 80, 7)
    errors = {}
    for merge in MERGES:
        config = QuickMergeConfig(merge=merge)
        groups = group_tokens(x, kept, config)
        merged = merge_states(x, kept, groups, torch.full((80,), 0.5), config)
        errors[merge] = reconstruction_error(x, merged, groups)
    assert errors["mean"] < errors["weighted"] < errors["select"]
