"""Turning rotated keys back by some positions, and finding out whether that is what a layer needs.

RoPE turns pairs of a key's numbers by angles that grow linearly with the position (Su et al., 2021,
eq. 34; also with the frequencies of Llama 3, NTK and YaRN), so a key at position p becomes one at
p - b by turning it by the angles of -b.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qm_vllm.engine.upload import upload

TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2}
LOOSEST = 3e-2
"""How far two vectors that should be equal may differ, relative to the longest of all: a few
roundings of their type. Less exact types than float16 get the second."""


@dataclass(frozen=True, eq=False)
class Turn:
    """What a rotary embedding turns by.

    Attributes:
        table: [positions, R] float32 on the CPU: cosines, then sines. They may carry a factor
            (YaRN's mscale), which keys have already.
        width: R, how many of a key's first numbers are turned.
        halves: number i is paired with i + R/2 (NeoX), else neighbours are (GPT-J).
    """

    table: Tensor
    width: int
    halves: bool

    def back(self, keys: Tensor, by: int) -> Tensor:
        """Keys [R, KVH, D] turned back by so many positions; the others' dtype and device.

        Args:
            by: less than 0: turned on by so many.

        Raises:
            ValueError: the table has no such position.
        """
        if abs(by) >= self.table.shape[0]:
            raise ValueError(f"keys cannot be turned back by {by} of {self.table.shape[0]}")
        if by == 0:
            return keys
        factor = self.table[0, : self.width // 2]
        row = self.table[abs(by)] / torch.cat((factor, factor))
        cos, sin = upload(row, keys.device).chunk(2)
        sin = sin if by > 0 else -sin
        part = keys[..., : self.width].float()
        if self.halves:
            one, other = part.chunk(2, -1)
        else:
            one, other = part[..., ::2], part[..., 1::2]
        turned = one * cos + other * sin, other * cos - one * sin
        joined = (
            torch.cat(turned, -1) if self.halves else torch.stack(turned, -1).flatten(-2)
        )
        return torch.cat((joined.to(keys.dtype), keys[..., self.width :]), -1)


def stands_still(rows: Tensor) -> bool:
    """Whether rows [T, H, D] of equal tokens do not depend on their position."""
    return _equal(rows, rows[:1].expand_as(rows), rows)


def turns_as(turn: Turn, rows: Tensor, positions: Sequence[int]) -> bool:
    """Whether rows [T, H, D] of equal tokens differ by these turns alone.

    Args:
        positions: of the rows; none is before the first.
    """
    first = positions[0]
    if max(positions) - first >= turn.table.shape[0]:
        return False
    back = [
        turn.back(row[None], position - first)
        for row, position in zip(rows, positions, strict=True)
    ]
    return _equal(torch.cat(back), rows[:1].expand_as(rows), rows)


def _equal(found: Tensor, expected: Tensor, scale: Tensor) -> bool:
    longest = scale.float().norm(dim=-1).max()
    worst = (found.float() - expected.float()).norm(dim=-1).max()
    return bool(torch.isfinite(worst) and worst <= TOLERANCE.get(scale.dtype, LOOSEST) * longest)
