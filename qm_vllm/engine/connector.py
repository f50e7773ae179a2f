"""The KV connector that vLLM loads: makes the scheduler side or the worker side."""

from __future__ import annotations

from qm_vllm.api import SCHEDULER
from qm_vllm.calibration import calibrated
from qm_vllm.config import QuickMergeConfig
from qm_vllm.engine.facts import read_facts, refuse
from qm_vllm.engine.jobs.worker_side import WorkerSide
from qm_vllm.engine.metrics import QuickMergePromMetrics, QuickMergeStats
from qm_vllm.engine.native.layer_groups import wanted_share
from qm_vllm.engine.requests.long_prompts import early_refusal, longest_admitted
from qm_vllm.engine.requests.scheduler_side import SchedulerSide
from qm_vllm.reports import REFUSED, REPORT_KEY
from qm_vllm_patches import checks, frontend
from qm_vllm_patches.connector import ConnectorBase, registered
from qm_vllm_patches.long_prompts import admit_long_prompts
from qm_vllm_patches.settings import CacheFacts, EngineSettings

# vLLM loads this module in each process of an engine that was started with the plug-in.
frontend.carry_reports(REPORT_KEY, REFUSED)
admit_long_prompts(REPORT_KEY, SCHEDULER, longest_admitted, early_refusal)


class QuickMergeConnector(ConnectorBase):
    """Compresses prompts before any block is allocated for them.

    Raises:
        ConfigError: the engine's options are invalid.
        RuntimeError: this vLLM or this engine setting cannot work; the message says why.
    """

    REPORT = REPORT_KEY
    STATS = QuickMergeStats
    PROM_METRICS = QuickMergePromMetrics
    scheduler_side: SchedulerSide
    worker_side: WorkerSide

    def make_scheduler_side(self, settings: EngineSettings, cache: CacheFacts) -> SchedulerSide:
        """Checks the installed vLLM first."""
        config = configured(settings)
        checks.require(strict=config.strict_version)
        share = wanted_share(config, settings)
        return SchedulerSide(config, read_facts(settings, cache, share))

    def make_worker_side(self, settings: EngineSettings, cache: CacheFacts) -> WorkerSide:
        """One for each rank."""
        return WorkerSide(
            configured(settings), settings.block_size, quantised=settings.quantised, facts=cache
        )


def configured(settings: EngineSettings) -> QuickMergeConfig:
    """The engine's options, with the layers that were measured for its model.

    Raises:
        ConfigError: they are invalid.
        RuntimeError: the plug-in cannot work in this engine at all.
    """
    problem = refuse(settings)
    if problem:
        raise RuntimeError(f"qm_vllm cannot run in this engine: {problem}")
    config = QuickMergeConfig.from_dict(settings.options.get(REPORT_KEY, {}))
    return calibrated(config, settings.text_config)


registered(QuickMergeConnector.__name__, __name__)  # inside MultiConnector, vLLM asks by name
