"""GBST and pooling against loops in float64, fixed patches against their boundaries."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from qm_vllm_eval.baselines import Source
from qm_vllm_eval.baselines.fixed_patches import FixedPatches, membership, starts
from qm_vllm_eval.baselines.token_free import TokenFree, block_mixture
from qm_vllm_eval.baselines.token_learner import TokenLearner
from tests.unit.eval.baseline_sources import make_source


def loop_mixture(states: torch.Tensor, length: int, score: nn.Linear, most: int) -> torch.Tensor:
    """Charformer 2.1.1 to 2.1.3, one position and one block at a time, in float64."""
    count = states.shape[0]
    weight = score.weight[0].double()
    result = torch.zeros(count, states.shape[1], dtype=torch.float64)
    for i in range(count):
        blocks = []
        for size in range(1, most + 1):
            first = i // size * size
            members = [j for j in range(first, first + size) if j < length]
            total = sum((states[j].double() for j in members), torch.zeros_like(result[0]))
            blocks.append(total / max(1, len(members)))
        scores = torch.stack([weight @ block for block in blocks])
        shares = scores.exp() / scores.exp().sum()
        result[i] = sum(share * block for share, block in zip(shares, blocks, strict=True))
    return result


@pytest.mark.parametrize("most", [1, 2, 4, 5])
@pytest.mark.parametrize("count", [1, 4, 13])
def test_block_mixture_is_the_papers(most: int, count: int) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([count, max(1, count - 3), 1])
    mask = (torch.arange(count) < lengths[:, None]).float()[..., None]
    states, score = torch.randn(3, count, 6) * mask, nn.Linear(6, 1, bias=False)
    mixed = block_mixture(states, mask, score, most)
    for row in range(3):
        expected = loop_mixture(states[row], int(lengths[row]), score, most)
        torch.testing.assert_close(mixed[row].double(), expected, rtol=1e-4, atol=1e-5)


def test_bytes_beyond_the_length_do_not_matter() -> None:
    torch.manual_seed(0)
    method, source = TokenFree(20, 61, width=16), make_source()
    positions = torch.arange(61)
    other = replace(source, raw=source.raw.masked_fill(
        positions >= source.raw_lengths[:, None], 77
    ))
    assert torch.equal(method(source).states, method(other).states)
    # Nor does the width of the padding.
    wider = replace(source, raw=nn.functional.pad(source.raw, (0, 30)))
    more = method(wider)
    assert torch.equal(more.lengths, method(source).lengths)
    torch.testing.assert_close(more.states[:, :20], method(source).states[:, :20])


@pytest.mark.parametrize("positions", [1, 7, 20, 61, 100])
def test_positions_are_a_fixed_share_of_the_bytes(positions: int) -> None:
    source = make_source(20)
    tokens = TokenFree(positions, 61, width=8)(source)
    pool = max(1.0, 61 / positions)
    for length, size in zip(tokens.lengths.tolist(), source.raw_lengths.tolist(), strict=True):
        assert length == sum(math.floor(k * pool + 1e-9) < size for k in range(100))
    assert tokens.lengths.max() == min(positions, 61)


def test_byte_order_matters() -> None:
    torch.manual_seed(0)
    raw = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]], dtype=torch.uint8)
    blank = make_source(2, 3)
    source = Source(blank.states, blank.saliency, blank.absolute, raw, torch.tensor([4, 4]))
    one, two = TokenFree(1, 4, width=16)(source).states
    assert not torch.allclose(one, two)


@pytest.mark.parametrize("count", [1, 2, 10, 23, 128, 237])
@pytest.mark.parametrize("size", [1.0, 1.1, 2.0, 2.37, 3.5, 300.0])
def test_patches_start_at_the_floors(count: int, size: float) -> None:
    # In whole numbers, so that no rounding is shared with what is tested.
    hundredths = round(size * 100)
    firsts = [k * hundredths // 100 for k in range(-(-count * 100 // hundredths))]
    assert starts(count, size).tolist() == firsts
    states = make_source(3, count).states
    tokens = FixedPatches(12, size)(make_source(3, count))
    assert tokens.lengths.tolist() == [len(firsts)] * 3
    for k, (first, stop) in enumerate(zip(firsts, [*firsts[1:], count], strict=True)):
        torch.testing.assert_close(tokens.states[:, k], states[:, first:stop].mean(1))
    assert torch.equal(membership(count, size).sum(0), torch.ones(count))


def test_patches_of_one_are_the_states_bit_for_bit() -> None:
    source = make_source()
    assert torch.equal(FixedPatches(12)(source).states, source.states)
    with pytest.raises(ValueError, match="size"):
        FixedPatches(12, 0.5)


def test_attention_maps_sum_to_one_and_weigh_the_states() -> None:
    torch.manual_seed(0)
    source = make_source()
    method = TokenLearner(12, 9)
    weights = method.weights(source.states)
    assert weights.shape == (5, 9, 23)
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, 9))
    expected = torch.einsum("bkn,bnd->bkd", weights, source.states)
    torch.testing.assert_close(method(source).states, expected, rtol=1e-4, atol=1e-5)
    shuffled = source.states[:, torch.randperm(23)]  # a sum over tokens knows no order
    torch.testing.assert_close(method(replace(source, states=shuffled)).states, expected,
                               rtol=1e-4, atol=1e-5)
