"""Between seconds of a clip and indices of equal time bins, and windows from log-probabilities.

A clip of S seconds has B bins of S / B seconds; bin i covers [i, i + 1) times that. A window is
the pair (first bin, last bin) of the bins that it touches, both included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SLACK = 1e-6  # of a bin: an edge that floating point puts just beside a bin's border is on it
_BLOCK = 1 << 22  # scores of pairs that are in memory at the same time


@dataclass(frozen=True)
class TimeBins:
    """The bins of one clip.

    Attributes:
        seconds: the clip's length. count: number of bins.

    Raises:
        ValueError: the length is not positive and finite, or there is no bin.
    """

    seconds: float
    count: int

    def __post_init__(self) -> None:
        """Checks both."""
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"a clip of {self.seconds} seconds has no bins; give more than 0")
        if self.count < 1:
            raise ValueError(f"{self.count} bins; give at least one")

    @property
    def width(self) -> float:
        """Seconds of a bin."""
        return self.seconds / self.count

    def bin_at(self, second: float) -> int:
        """The bin that holds a time; times outside the clip fall into its first or last bin."""
        return self._clamp(math.floor(self._position(second) + _SLACK))

    def to_bins(self, start: float, end: float) -> tuple[int, int]:
        """First and last bin that the window touches; a window without length has one.

        Raises:
            ValueError: the window ends before it starts, or is not finite.
        """
        if not start <= end or math.isinf(start) or math.isinf(end):
            raise ValueError(f"the window ({start}, {end}) does not end after it starts")
        first = self.bin_at(start)
        last = self._clamp(math.ceil(self._position(end) - _SLACK) - 1)
        return first, max(first, last)

    def to_seconds(self, first: int, last: int) -> tuple[float, float]:
        """The window that two bins and all between them cover.

        Raises:
            ValueError: the bins are not in order or not in the clip.
        """
        if not 0 <= first <= last < self.count:
            raise ValueError(f"bins {first} to {last} are not in order within {self.count}")
        return first * self.width, (last + 1) * self.width

    def _position(self, second: float) -> float:
        return min(max(second, 0.0), self.seconds) / self.width

    def _clamp(self, index: int) -> int:
        return min(max(index, 0), self.count - 1)


def top_segments(
    start_scores: Any, end_scores: Any, count: int = 5, longest: int | None = None
) -> list[tuple[int, int, float]]:
    """The ``count`` best pairs (first bin, last bin, score) with last >= first, best first.

    The score of a pair is the sum of its two log-probabilities. No two pairs are the same, but
    they may overlap: nothing is suppressed. Equal scores go by first, then by last bin, so the
    result does not depend on the machine. There are fewer pairs if there are not enough possible
    ones (log-probability above minus infinity).

    Args:
        start_scores, end_scores: log-probabilities [B] of the first and of the last bin.
        longest: the most bins of a segment; None: no limit.

    Raises:
        ValueError: not two equally long vectors, empty ones, or NaN or plus infinity in them.
    """
    starts, ends = _vector(start_scores), _vector(end_scores)
    if starts.shape != ends.shape or not len(starts):
        raise ValueError(f"need the same bins twice, got {starts.shape} and {ends.shape}")
    bins = len(starts)
    step = max(1, _BLOCK // bins)
    last = np.arange(bins)
    found: list[tuple[int, int, float]] = []
    for low in range(0, bins, step):
        first = np.arange(low, min(bins, low + step))[:, None]
        scores = starts[first] + ends[None, :]
        allowed = last >= first
        if longest is not None:
            allowed &= last < first + longest
        scores = np.where(allowed, scores, -np.inf).ravel()
        for place in _best(scores, count):
            row, column = divmod(place, bins)
            found.append((low + row, column, float(scores[place])))
    return sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))[:count]


def _best(scores: NDArray[np.float64], count: int) -> list[int]:
    """Places of the best finite scores; of equal ones the first places."""
    if count < 1:
        return []
    if count < len(scores):
        limit = np.partition(scores, -count)[-count]
        above = np.flatnonzero(scores > limit)
        equal = np.flatnonzero(scores == limit)[: count - len(above)]
        places = np.concatenate([above, equal])
    else:
        places = np.arange(len(scores))
    return [int(place) for place in places if np.isfinite(scores[place])]


def _vector(values: Any) -> NDArray[np.float64]:
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or np.isnan(vector).any() or np.isposinf(vector).any():
        raise ValueError(f"log-probabilities of shape {vector.shape}: give a vector without NaN")
    return vector
