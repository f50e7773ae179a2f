"""Agglomerative clustering of neighbours along the sequence."""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from qm_vllm.compress.entropy import ROWS, unit_rows


def group(states: Tensor, kept: Tensor) -> Tensor:
    """Merge the most similar neighbouring clusters until each holds exactly one anchor.

    Every token starts as its own cluster. The pair of adjacent clusters whose mean
    directions have the largest cosine is merged first (of equal pairs the leftmost); two
    clusters that both hold an anchor are never joined. Groups are therefore contiguous, with
    borders at changes of content. O(N log N + N D), on the CPU.

    Args:
        states: [N, D], any floating type.
        kept: int64 [K], strictly increasing.

    Returns:
        int64 [N], non-decreasing.
    """
    count = states.shape[0]
    unit, _ = unit_rows(states.detach())
    rows = unit.cpu()
    near: list[float] = []
    squares: list[float] = []
    for start in range(0, count, ROWS):
        part, following = rows[start : start + ROWS], rows[start + 1 : start + ROWS + 1]
        near += (part[: following.shape[0]] * following).sum(1).tolist()
        squares += part.square().sum(1).tolist()
    sums = rows.unbind()  # summed in place
    anchored = [False] * count
    for position in kept.tolist():
        anchored[position] = True
    after = list(range(1, count + 1))
    before = list(range(-1, count - 1))
    version = [0] * count
    alive = [True] * count
    # Entries: (-cosine, left cluster, right cluster, their versions when entered).
    heap = [
        (-_cosine(near[i], squares[i], squares[i + 1]), i, i + 1, 0, 0)
        for i in range(count - 1)
        if not (anchored[i] and anchored[i + 1])
    ]
    heapq.heapify(heap)
    while heap:
        _, left, right, left_version, right_version = heapq.heappop(heap)
        stale = version[left] != left_version or version[right] != right_version
        if stale or not alive[left] or not alive[right]:
            continue
        sums[left].add_(sums[right])
        squares[left] = float(sums[left].dot(sums[left]))
        anchored[left] = anchored[left] or anchored[right]
        alive[right] = False
        version[left] += 1
        after[left] = after[right]
        if after[left] < count:
            before[after[left]] = left
        for one, two in ((before[left], left), (left, after[left])):
            if one < 0 or two >= count or (anchored[one] and anchored[two]):
                continue
            cosine = _cosine(float(sums[one].dot(sums[two])), squares[one], squares[two])
            heapq.heappush(heap, (-cosine, one, two, version[one], version[two]))
    heads = torch.tensor(alive, dtype=torch.int64)
    return (torch.cumsum(heads, 0) - 1).to(kept.device)


def _cosine(dot: float, one: float, two: float) -> float:
    """Cosine from a dot product and two squared norms; 0 where a vector vanishes."""
    product = one * two
    return dot / float(product**0.5) if product > 0 else 0.0
