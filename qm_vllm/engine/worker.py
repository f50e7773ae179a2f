"""``QuickMergeWorker``: the platform's own worker, which also hands the model to the connector.

The class is made on first access, on top of whichever worker vLLM would have chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from qm_vllm_patches.log import get_logger
from qm_vllm_patches.settings import EngineSettings
from qm_vllm_patches.worker import WorkerHooks, worker_class

logger = get_logger(__name__)


class QuickMergeWorkerMixin(WorkerHooks):
    """Sets memory aside for jobs, and attaches the model."""

    _job_bytes = 0
    _widest = 1.0

    def keep_more(
        self, settings: EngineSettings, names: Sequence[str], model: Any, device: Any, runner: Any
    ) -> Collection[str]:
        """Layers that look things up, where they shall have more of a prompt than the others."""
        from qm_vllm.engine.connector import configured
        from qm_vllm.engine.native.blocks import widest
        from qm_vllm.engine.native.layer_groups import chosen_layers, wanted_share

        config = configured(settings)
        found = chosen_layers(config, settings, names, model, device, runner)
        if found:
            self._widest = widest(wanted_share(config, settings), len(names) // len(found))
        return found

    def memory_to_keep(self, settings: EngineSettings, available: int, *, profiled: bool) -> int:
        """A share of the KV cache's memory; beside it where nobody measured what is free."""
        from qm_vllm.engine.connector import configured
        from qm_vllm.engine.facts import decoder_shape
        from qm_vllm.engine.memory import LEAST, memory_to_keep

        config, shape = configured(settings), decoder_shape(settings)
        if profiled:
            self._job_bytes = memory_to_keep(
                config, shape, available, max_model_len=settings.max_model_len,
                block_size=settings.block_size, widest=self._widest,
            )
        else:  # the KV cache was given its size, so this is not taken from it
            self._job_bytes = max(int(config.job_memory_share * available), LEAST)
        logger.info(
            "qm_vllm: compression jobs hold at most %.1f MiB at once, %s", self._job_bytes / 2**20,
            "which are taken from the KV cache" if profiled else "beside the KV cache",
        )
        return self._job_bytes if profiled else 0

    def model_loaded(
        self, connector: Any, settings: EngineSettings, model: Any, device: Any, runner: Any
    ) -> None:
        """Hand the model to our connector.

        Raises:
            RuntimeError: the engine has another connector, and not ours beside it.
        """
        from qm_vllm.engine.connector import QuickMergeConnector

        if not isinstance(connector, QuickMergeConnector):
            raise RuntimeError(
                f"qm_vllm's worker class needs QuickMergeConnector as the engine's KV connector or "
                f"inside its MultiConnector, not {type(connector).__name__} alone. Start with "
                "engine_args(), or leave worker_cls out"
            )
        connector.worker_side.job_bytes = self._job_bytes
        connector.worker_side.attach_model(model, settings.dtype, device)
        connector.worker_side.attach_runner(model, runner, device, settings.max_model_len)


def __getattr__(name: str) -> Any:
    if name != "QuickMergeWorker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    worker = worker_class(name, QuickMergeWorkerMixin, __name__)
    globals()[name] = worker
    return worker
