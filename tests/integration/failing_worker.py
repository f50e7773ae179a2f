"""A worker whose second rank fails in one job after another, each time somewhere else."""

from __future__ import annotations

from typing import Any

from qm_vllm.engine.worker import QuickMergeWorkerMixin
from qm_vllm_patches.worker import worker_class

STAGES = ("attend", "put", "choose", "whole", "deliver")
"""Where the first jobs fail, in their order: within a layer, between collectives, in a unit that
ends with one. Later jobs run."""


class FailingMixin(QuickMergeWorkerMixin):
    """As :class:`QuickMergeWorkerMixin`, on all ranks but the first with faults."""

    def model_loaded(self, *arguments: Any) -> None:
        super().model_loaded(*arguments)
        if self.rank:
            plant_faults()


def plant_faults() -> None:
    """Let each stage fail in the job of its number."""
    from qm_vllm.engine.dense.cpu_attention import CpuFlashAttention
    from qm_vllm.engine.dense.sdpa_attention import SdpaAttention
    from qm_vllm.engine.jobs import compression_job
    from qm_vllm.engine.jobs.compression_job import CompressionJob
    from qm_vllm.engine.jobs.job_cache import JobCache

    left, now = list(STAGES), [""]
    begin = CompressionJob.__init__

    def started(self: Any, *rest: Any) -> None:
        now[0] = left.pop(0) if left else ""
        begin(self, *rest)

    def fail(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def broken(*args: Any, **kwargs: Any) -> Any:
            if now[0] == name:
                raise ArithmeticError(f"{name} failed on one rank")
            return original(*args, **kwargs)

        setattr(owner, name, broken)

    CompressionJob.__init__ = started  # type: ignore[method-assign]
    for owner in (SdpaAttention, CpuFlashAttention):
        if "attend" in vars(owner):
            fail(owner, "attend")
    fail(compression_job, "choose")
    for name in ("put", "whole", "deliver"):
        fail(JobCache, name)


def __getattr__(name: str) -> Any:
    if name != "FailingWorker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    worker = worker_class(name, FailingMixin, __name__)
    globals()[name] = worker
    return worker
