"""``QuickMergeWorker``: the platform's own worker, which also hands the model to the connector.

The class is made on first access, on top of whichever worker vLLM would have chosen.
"""

from __future__ import annotations

import importlib
from typing import Any

from qm_vllm_patches.log import get_logger

logger = get_logger(__name__)

WORKER_BASES = {
    "cpu": "vllm.v1.worker.cpu_worker.CPUWorker",
    "cuda": "vllm.v1.worker.gpu_worker.Worker",
    "rocm": "vllm.v1.worker.gpu_worker.Worker",
    "xpu": "vllm.v1.worker.xpu_worker.XPUWorker",
}


class QuickMergeWorkerMixin:
    """Overrides two public steps of the worker's start-up."""

    def determine_available_memory(self) -> int:
        """KV-cache bytes, less the scratch of our jobs where device memory is profiled."""
        available: int = super().determine_available_memory()  # type: ignore[misc]
        config: Any = self.vllm_config  # type: ignore[attr-defined]
        explicit = config.cache_config.kv_cache_memory_bytes is not None
        tokens, needed = _scratch(config)
        taken = self.device.type != "cpu" and not explicit  # type: ignore[attr-defined]
        logger.info(
            "qm_vllm: compression jobs hold at most %s source tokens (max_source_tokens) and "
            "%.1f MiB at once, %s", f"{tokens:,}", needed / 2**20,
            "which are taken from the KV cache" if taken else "beside the KV cache",
        )
        return max(0, available - needed) if taken else available

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


def _scratch(config: Any) -> tuple[int, int]:
    """Source tokens that may be in the encoder at once, and the bytes that jobs then take."""
    from qm_vllm.api import CONFIG_KEY
    from qm_vllm.calibration import calibrated
    from qm_vllm.config import QuickMergeConfig
    from qm_vllm.engine.scratch_memory import DecoderShape, scratch_bytes

    options = config.kv_transfer_config.kv_connector_extra_config.get(CONFIG_KEY, {})
    model, parallel = config.model_config, config.parallel_config
    shape = DecoderShape(
        hidden_size=model.get_hidden_size(),
        num_layers=model.get_num_layers(parallel),
        num_kv_heads=model.get_num_kv_heads(parallel),
        head_size=model.get_head_size(),
        bytes_per_value=model.dtype.itemsize,
    )
    chosen = calibrated(QuickMergeConfig.from_dict(options), model.hf_text_config)
    tokens = chosen.max_source_tokens or model.max_model_len
    return tokens, scratch_bytes(chosen, shape, tokens)


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
