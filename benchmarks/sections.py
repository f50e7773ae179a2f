"""Where the time of a compressed prefill goes: exclusive sections around the plug-in's parts."""

from __future__ import annotations

import functools
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

REST = "scheduler, input and output"
PARTS = {
    "encoder": "linear layers, encoder", "upper": "linear layers, upper",
    "saliency": "selection", "merge": "re-rotation",
}
"""What is left of the plug-in's own phases, once the sections inside them are taken out."""


class Sections:
    """Adds up seconds and operations by section; an inner section is not counted in the outer.

    On CUDA the device is waited for at each border, so that kernels count where they belong; the
    sum is then larger than the undisturbed request.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self._stack = [REST]
        self._since = time.perf_counter()
        self._cuda = torch.cuda.is_available()

    @property
    def current(self) -> str:
        """The innermost open section."""
        return self._stack[-1]

    def reset(self) -> None:
        """Forget what was counted; open sections stay open."""
        self.mark()
        self.seconds.clear()
        self.launches.clear()
        self.waits.clear()

    def mark(self) -> None:
        """Count what was spent since the last border towards the open section."""
        if self._cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self.current] += now - self._since
        self._since = now

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Count what happens inside towards ``name``."""
        self.mark()
        self._stack.append(name)
        try:
            yield
        finally:
            self.mark()
            self._stack.pop()

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Let every call of ``owner.attribute`` be a section; ``{}`` is the phase around it."""
        own = getattr(owner, attribute)

        @functools.wraps(own)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with self.section(name.format(self.current.rpartition(", ")[2])):
                return own(*args, **kwargs)

        setattr(owner, attribute, inside)

    def install(self, llm: Any) -> None:
        """Put sections into the plug-in and around the model runner of an in-process engine."""
        from qm_vllm.compress import Evidence, choice
        from qm_vllm.engine.dense import attention as dense_attention
        from qm_vllm.engine.dense.runner import DenseRunner
        from qm_vllm.engine.jobs import compression_job
        from qm_vllm.engine.jobs.compression_job import CompressionJob
        from qm_vllm.engine.jobs.job_cache import JobCache
        from qm_vllm.engine.jobs.worker_side import WorkerSide
        from qm_vllm.engine.stopwatch import Stopwatch

        @contextmanager
        def phase(_: Any, name: str) -> Iterator[None]:
            with self.section(PARTS[name]):
                yield

        Stopwatch.phase = phase  # type: ignore[method-assign]
        for backend in ("CpuKernelAttention", "FlashVarlenAttention", "SdpaAttention"):
            self.wrap(getattr(dense_attention, backend), "attend", "attention, {}")
        self.wrap(DenseRunner, "embed", "embedding")
        self.wrap(DenseRunner, "window_attention", "scoring")
        self.wrap(choice, "score_tokens", "scoring")
        self.wrap(DenseRunner, "attention_error", "attention error")
        self.wrap(Evidence, "observe_layer", "entropy")
        self.wrap(compression_job, "finish", "merge")
        self.wrap(CompressionJob, "_report", "reading the result")
        self.wrap(JobCache, "deliver", "KV write")
        self.wrap(JobCache, "put", "KV write")
        self.wrap(JobCache, "whole", "KV read")
        self.wrap(WorkerSide, "work", "job queue")
        runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
        for name in ("execute_model", "sample_tokens"):
            self.wrap(runner.model_runner, name, "forward of the last token")


VIEWS = frozenset((
    "view", "_unsafe_view", "reshape", "alias", "slice", "select", "t", "transpose", "permute",
    "expand", "as_strided", "detach", "split", "split_with_sizes", "unbind", "unsqueeze", "squeeze",
    "chunk", "empty", "empty_like", "empty_strided", "new_empty", "lift_fresh", "unfold",
    "diagonal", "_local_scalar_dense", "item", "is_pinned", "resize_", "set_",
))
"""Operations that start no kernel."""
WAITS = frozenset((
    "nonzero", "equal", "unique_consecutive", "unique_dim", "_unique2", "bincount", "masked_select",
))
"""Operations for which the host waits for the device, as they read something from it."""
READS = frozenset((
    "item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__",
))
"""Methods of a tensor for which it does, too."""


class Operations(TorchDispatchMode):
    """Counts, per open section, operations that would each start a kernel on a device.

    A CPU run shows them too: an operation here stands for one launch or a few there. Library calls
    that check what they read (``segment_reduce`` with its checks, indexing with a mask) count as
    waits as well.
    """

    def __init__(self, sections: Sections) -> None:
        super().__init__()
        self.sections = sections

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, where = func.overloadpacket.__name__, self.sections.current
        if name not in VIEWS:
            self.sections.launches[where] += 1
        checked = name == "segment_reduce" and not (kwargs or {}).get("unsafe", False)
        mask = name.startswith("index") and len(args) > 1 and isinstance(args[1], (list, tuple)) \
            and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in WAITS or checked or mask:
            self.sections.waits[where] += 1
        return func(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """Counts what Python reads from tensors, per open section. On a CPU run, reads of tensors that
    never leave the host count as well."""

    def __init__(self, sections: Sections) -> None:
        super().__init__()
        self.sections = sections

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in READS:
            self.sections.waits[self.sections.current] += 1
        return func(*args, **(kwargs or {}))
