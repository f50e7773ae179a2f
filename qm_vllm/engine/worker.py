"""``QuickMergeWorker``: the platform's own worker, which also hands the model to the connector.

The class is made on first access, on top of whichever worker vLLM would have chosen.
"""

from __future__ import annotations

import importlib
from typing import Any

WORKER_BASES = {
    "cpu": "vllm.v1.worker.cpu_worker.CPUWorker",
    "cuda": "vllm.v1.worker.gpu_worker.Worker",
    "rocm": "vllm.v1.worker.gpu_worker.Worker",
    "xpu": "vllm.v1.worker.xpu_worker.XPUWorker",
}


class QuickMergeWorkerMixin:
    """Overrides one public step of the worker's start-up."""

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        super().initialize_from_config(kv_cache_config)  # type: ignore[misc]
        from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

        from qm_vllm.engine.connector import QuickMergeConnector

        if not has_kv_transfer_group():
            return
        connector = get_kv_transfer_group()
        if isinstance(connector, QuickMergeConnector):
            config: Any = self.vllm_config.model_config  # type: ignore[attr-defined]
            model = self.model_runner.get_model()  # type: ignore[attr-defined]
            connector.worker_side.attach_model(model, config.dtype, self.device)  # type: ignore[attr-defined]


def __getattr__(name: str) -> Any:
    if name != "QuickMergeWorker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vllm.platforms import current_platform

    kind = current_platform.device_type
    if current_platform.is_rocm():
        kind = "rocm"
    if kind not in WORKER_BASES:
        raise RuntimeError(
            f"qm_vllm has no worker for platform {kind!r}; supported: {', '.join(WORKER_BASES)}"
        )
    module, _, base_name = WORKER_BASES[kind].rpartition(".")
    base = getattr(importlib.import_module(module), base_name)
    worker = type("QuickMergeWorker", (QuickMergeWorkerMixin, base), {"__module__": __name__})
    globals()[name] = worker
    return worker
