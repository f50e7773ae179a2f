"""How a user switches the plug-in on: keyword arguments for vLLM, nothing else."""

from __future__ import annotations

import json
from typing import Any

from qm_vllm.config import QuickMergeConfig
from qm_vllm.reports import REPORT_KEY

CONNECTOR_MODULE = "qm_vllm.engine.connector"
CONNECTOR_NAME = "QuickMergeConnector"
WORKER_CLASS = "qm_vllm.engine.worker.QuickMergeWorker"
SCHEDULER = "qm_vllm_patches.scheduler.make_scheduler"
MIDDLEWARE = ("qm_vllm.http_options.RefuseBadOptions", "qm_vllm.http_reports.AddReports")


def engine_args(config: QuickMergeConfig | None = None) -> dict[str, Any]:
    """Keyword arguments that start a ``vllm.LLM`` (or ``EngineArgs``) with the plug-in.

    >>> llm = LLM("model", **engine_args(QuickMergeConfig(ratio=0.4)))
    """
    return {
        "kv_transfer_config": {
            "kv_connector": CONNECTOR_NAME,
            "kv_connector_module_path": CONNECTOR_MODULE,
            "kv_role": "kv_producer",  # the connector says why
            "kv_load_failure_policy": "fail",
            "kv_connector_extra_config": {REPORT_KEY: (config or QuickMergeConfig()).to_dict()},
        },
        "worker_cls": WORKER_CLASS,
        "scheduler_cls": SCHEDULER,
    }


def engine_cli_args(config: QuickMergeConfig | None = None) -> list[str]:
    """The same as flags of ``vllm serve``, with HTTP 400 for bad options of a request and a
    report in every answer."""
    arguments = engine_args(config)
    return [
        "--kv-transfer-config",
        json.dumps(arguments["kv_transfer_config"]),
        "--worker-cls",
        arguments["worker_cls"],
        "--scheduler-cls",
        arguments["scheduler_cls"],
        *(part for one in MIDDLEWARE for part in ("--middleware", one)),
    ]
