"""Rotations to negative positions, on a stand-in for vLLM's rotary embedding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qm_vllm_patches.fused_ops import CACHE, rotary_forward, rotary_table

SIZE = 8


class Rotary(nn.Module):
    """Neox layout, frequencies scaled, as vLLM keeps them: rows of cosines and sines."""

    def __init__(self, rows: int = 64, mscale: float = 1.3) -> None:
        super().__init__()
        angles = torch.arange(rows)[:, None] * 0.7 ** torch.arange(SIZE // 2)[None]
        table = mscale * torch.cat((angles.cos(), angles.sin()), 1)
        self.register_buffer(CACHE, table, persistent=False)

    def forward_cpu(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.get_buffer(CACHE)[positions].chunk(2, 1)

        def turn(x: Tensor) -> Tensor:
            low, high = x.chunk(2, 1)
            return torch.cat((low * cos - high * sin, high * cos + low * sin), 1)

        return turn(query), turn(key)


def rotated(rotary: Rotary, x: Tensor, positions: Tensor) -> Tensor:
    table = rotary_table(rotary, positions)
    forward = rotary_forward(rotary, torch.device("cpu"), table)
    return forward(torch.arange(len(x)), x, x)[1]


def test_table_equals_the_modules_own_rows_where_positions_are_not_negative():
    rotary, x = Rotary(), torch.randn(5, SIZE)
    own, _ = rotary.forward_cpu(torch.tensor([0, 3, 9, 20, 63]), x, x)
    assert torch.equal(rotated(rotary, x, torch.tensor([0, 3, 9, 20, 63])), own)


@pytest.mark.parametrize("shift", [-40, -7, 0, 12])
def test_only_distances_count(shift):
    rotary, generator = Rotary(), torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 30, SIZE, generator=generator)
    source = torch.arange(30)
    here = rotated(rotary, query, source) @ rotated(rotary, key, source).T
    there = rotated(rotary, query, source + shift) @ rotated(rotary, key, source + shift).T
    torch.testing.assert_close(there, here, atol=1e-4, rtol=1e-4)


def test_the_modules_table_is_its_own_again_after_a_call_that_fails():
    rotary = Rotary()
    own = rotary.get_buffer(CACHE)
    table = rotary_table(rotary, torch.tensor([-1]))
    with pytest.raises(IndexError):
        rotary_forward(rotary, torch.device("cpu"), table)(
            torch.tensor([5]), torch.ones(1, SIZE), torch.ones(1, SIZE)
        )
    assert rotary.get_buffer(CACHE) is own


def test_a_module_without_a_table_has_none():
    assert rotary_table(nn.Identity(), torch.tensor([1])) is None
