"""What the machine can do at best: its measured GEMM rate and copy bandwidth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Floor:
    """Rates of this machine, medians of some runs."""

    dtype: str
    size: int
    """Of the square matrices that were multiplied."""
    gemm_flops: float
    """FLOP/s of a GEMM in dtype."""
    copy_bytes: float
    """Bytes read and written per second by a copy that fits no cache."""

    def seconds(self, flops: float, moved: float) -> float:
        """Least time for so many FLOPs and bytes, whichever takes longer."""
        return max(flops / self.gemm_flops, moved / self.copy_bytes)

    def facts(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)


def seconds(work: Callable[[], Any], runs: int = 5, warm_up: int = 1) -> list[float]:
    """Wall times of some runs; on CUDA each waits for the device."""
    taken = []
    for run in range(warm_up + runs):
        begin = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if run >= warm_up:
            taken.append(time.perf_counter() - begin)
    return taken


def measure_floor(dtype: str) -> Floor:
    """Measure both, in a second or two."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 2048
    kind = getattr(torch, dtype)
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    gemm = statistics.median(seconds(lambda: a @ b))
    source = torch.ones(1 << (30 if device == "cuda" else 27), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = statistics.median(seconds(lambda: target.copy_(source)))
    return Floor(dtype, size, 2 * size**3 / gemm, 2 * source.nbytes / copy)
