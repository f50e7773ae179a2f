"""Differentiable selection and merging (eq. 3-4)."""

from __future__ import annotations

import pytest
import torch

from qm_vllm.compress import gumbel_softmax_mask, soft_merge


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("temperature", [0.01, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("k", [1, 7, 19])
def test_mask_lies_in_0_1_sums_to_k_and_repeats(k, temperature, hard):
    s = torch.rand(20, generator=seeded())
    mask = gumbel_softmax_mask(s, k, temperature, seeded(1), hard=hard)
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert mask.sum().item() == pytest.approx(k, abs=1e-3)
    assert torch.equal(mask, gumbel_softmax_mask(s, k, temperature, seeded(1), hard=hard))
    assert not torch.equal(mask, gumbel_softmax_mask(s, k, temperature, seeded(2), hard=hard)) or (
        hard or temperature < 0.1
    )


def test_mask_follows_eq_3():
    """logit(M_i) - logit(M_j) = log(pi_i / pi_j)."""
    s = torch.rand(12, dtype=torch.float64, generator=seeded())
    noise = -torch.empty_like(s).exponential_(generator=seeded(3)).log()
    log_pi = torch.log_softmax((s + noise) / 0.7, 0)
    mask = gumbel_softmax_mask(s, 4, 0.7, seeded(3))
    gap = torch.logit(mask) - log_pi
    assert torch.allclose(gap, gap[0].expand(12))


def test_hard_mask_is_the_top_k_and_has_the_soft_gradient():
    s = torch.rand(12, dtype=torch.float64, generator=seeded(), requires_grad=True)
    weights = torch.rand(12, dtype=torch.float64, generator=seeded(5))
    hard = gumbel_softmax_mask(s, 4, 0.7, seeded(3), hard=True)
    soft = gumbel_softmax_mask(s, 4, 0.7, seeded(3))
    assert sorted(hard.tolist()) == pytest.approx([0] * 8 + [1] * 4)
    assert set(hard.topk(4).indices.tolist()) == set(soft.topk(4).indices.tolist())
    (one,) = torch.autograd.grad((hard * weights).sum(), s)
    (two,) = torch.autograd.grad((soft * weights).sum(), s)
    assert torch.allclose(one, two)
    assert one.abs().max() > 0


def test_mask_gradient_is_exact():
    s = torch.rand(9, dtype=torch.float64, generator=seeded(), requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: gumbel_softmax_mask(v, 3, 0.8, seeded(7)), (s,))


def test_keeping_everything():
    s = torch.rand(5, requires_grad=True)
    mask = gumbel_softmax_mask(s, 5, 1.0)
    assert mask.tolist() == [1.0] * 5
    mask.sum().backward()
    assert s.grad.abs().sum() == 0


def test_merge_follows_the_paper_and_its_gradient_is_exact():
    x = torch.randn(8, 3, dtype=torch.float64, generator=seeded(), requires_grad=True)
    s = torch.rand(8, dtype=torch.float64, generator=seeded(1), requires_grad=True)
    groups = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])

    def whole(states, saliency):
        mask = gumbel_softmax_mask(saliency, 3, 0.9, seeded(2))
        return soft_merge(states, mask, saliency, groups, 3, 0.01)

    mask = gumbel_softmax_mask(s, 3, 0.9, seeded(2))
    mass = mask * s + (1 - mask) * 0.01
    got = whole(x, s)
    for g in range(3):
        inside = groups == g
        mean = (mass[inside, None] * x[inside]).sum(0) / mass[inside].sum()
        assert torch.allclose(got[g], mean)
    assert torch.autograd.gradcheck(whole, (x, s))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gumbel_softmax_mask(torch.ones(3), 4, 1.0), "k=4"),
        (lambda: gumbel_softmax_mask(torch.ones(3), 0, 1.0), "k=0"),
        (lambda: gumbel_softmax_mask(torch.ones(3), 1, 0.0), "temperature=0.0"),
        (lambda: gumbel_softmax_mask(torch.ones(3, 1), 1, 1.0), "saliency must be"),
        (lambda: merge(torch.zeros(3)), "groups must use"),
        (lambda: merge(torch.tensor([0, 1, 2])), "groups must use"),
        (lambda: merge(torch.tensor([0, 1])), "must be"),
        (lambda: merge(torch.tensor([0, 1, 1]), epsilon=2.0), "epsilon=2.0"),
    ],
)
def test_impossible_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def merge(groups, epsilon=0.1):
    return soft_merge(
        torch.ones(3, 2), torch.ones(3), torch.ones(3), groups.long(), 2, epsilon
    )
