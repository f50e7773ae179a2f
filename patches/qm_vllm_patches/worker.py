"""The platform's own worker class, with two steps of its start-up overridden."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from typing import Any

from qm_vllm_patches import company, cpu_seeds
from qm_vllm_patches.connector import ConnectorBase
from qm_vllm_patches.log import get_logger
from qm_vllm_patches.settings import EngineSettings, read_settings
from qm_vllm_patches.shorter_tables import shorten

logger = get_logger(__name__)

WORKER_BASES = {
    "cpu": "vllm.v1.worker.cpu_worker.CPUWorker",
    "cuda": "vllm.v1.worker.gpu_worker.Worker",
    "rocm": "vllm.v1.worker.gpu_worker.Worker",
    "xpu": "vllm.v1.worker.xpu_worker.XPUWorker",
}


class WorkerHooks:
    """Goes before a worker class of vLLM; a subclass fills in the first methods."""

    def memory_to_keep(self, settings: EngineSettings, available: int, *, profiled: bool) -> int:
        """Bytes of the KV cache's memory that the plug-in needs.

        Args:
            available: bytes that vLLM would give to the KV cache.
            profiled: they were measured, so what is kept is really free; else the user or the
                platform named them.
        """
        raise NotImplementedError

    def model_loaded(
        self, connector: Any, settings: EngineSettings, model: Any, device: Any, runner: Any
    ) -> None:
        """The model and its KV cache are there.

        Args:
            connector: ours, wherever it is; else vLLM's KV connector of this worker, or None.
            model: the loaded torch module. runner: what vLLM runs it with.
        """
        raise NotImplementedError

    def keep_more(
        self, settings: EngineSettings, names: Sequence[str], model: Any, device: Any, runner: Any
    ) -> Collection[str]:
        """Which layers keep more of a compressed prompt than the others; none: all keep as much.

        Args:
            names: of the layers with a KV cache, which is not there yet.
            model, device, runner: as of :meth:`model_loaded`.
        """
        raise NotImplementedError

    def get_kv_cache_spec(self) -> dict[str, Any]:
        """vLLM's, or the same in groups of layers that keep as much."""
        specs: dict[str, Any] = super().get_kv_cache_spec()  # type: ignore[misc]
        runner: Any = self.model_runner  # type: ignore[attr-defined]
        more = self.keep_more(
            read_settings(self.vllm_config), tuple(specs),  # type: ignore[attr-defined]
            runner.get_model(), self.device, runner,  # type: ignore[attr-defined]
        )
        if not more:
            return specs
        from qm_vllm_patches.layer_groups import grouped

        made = grouped(specs, more)
        if made is specs:
            logger.warning("qm_vllm: all layers keep as many tokens: vLLM caches them differently")
        return made

    def determine_available_memory(self) -> int:
        """KV-cache bytes, less what the plug-in keeps."""
        available: int = super().determine_available_memory()  # type: ignore[misc]
        config: Any = self.vllm_config  # type: ignore[attr-defined]
        explicit = config.cache_config.kv_cache_memory_bytes is not None
        profiled = self.device.type != "cpu" and not explicit  # type: ignore[attr-defined]
        kept = self.memory_to_keep(read_settings(config), available, profiled=profiled)
        return max(0, available - kept)

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        """Also hands over the model."""
        super().initialize_from_config(kv_cache_config)  # type: ignore[misc]
        from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

        group = get_kv_transfer_group() if has_kv_transfer_group() else None
        ours, _ = company.split(group, ConnectorBase)
        connector = ours if ours is not None else group
        config: Any = self.vllm_config  # type: ignore[attr-defined]
        runner: Any = self.model_runner  # type: ignore[attr-defined]
        device: Any = self.device  # type: ignore[attr-defined]
        if device.type == "cpu":
            cpu_seeds.mend(runner)
        specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
        for groups, spec in zip(runner.attn_groups, specs, strict=False):
            if getattr(spec, "keeps_less", False):
                shorten(groups, spec.block_size, config.scheduler_config.max_num_seqs)
        self.model_loaded(connector, read_settings(config), runner.get_model(), device, runner)


def worker_class(name: str, hooks: type[WorkerHooks], module: str) -> type:
    """The worker class that vLLM would have chosen here, behind the hooks.

    Raises:
        RuntimeError: the platform has no worker that is known.
    """
    from vllm.platforms import current_platform

    kind = "rocm" if current_platform.is_rocm() else current_platform.device_type
    if kind not in WORKER_BASES:
        raise RuntimeError(
            f"qm_vllm has no worker for platform {kind!r}; supported: {', '.join(WORKER_BASES)}"
        )
    place, _, base_name = WORKER_BASES[kind].rpartition(".")
    base = getattr(importlib.import_module(place), base_name)
    return type(name, (hooks, base), {"__module__": module})
