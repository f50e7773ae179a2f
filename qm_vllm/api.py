"""How a user switches the plug-in on: keyword arguments for vLLM, nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qm_vllm.config import QuickMergeConfig
from qm_vllm.reports import REPORT_KEY

CONNECTOR_MODULE = "qm_vllm.engine.connector"
CONNECTOR_NAME = "QuickMergeConnector"
WORKER_CLASS = "qm_vllm.engine.worker.QuickMergeWorker"
ROLE = "kv_producer"
"""Of the engine's frontends: those of a consumer take images as states, which any client could
send, and bad ones end the engine. Its scheduler is a consumer's (qm_vllm_patches)."""
SCHEDULER = "qm_vllm_patches.scheduler.make_scheduler"
MIDDLEWARE = ("qm_vllm.http_options.RefuseBadOptions", "qm_vllm.http_reports.AddReports")


def engine_args(
    config: QuickMergeConfig | None = None, others: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Keyword arguments that start a ``vllm.LLM`` (or ``EngineArgs``) with the plug-in.

    Args:
        others: configurations of more KV connectors for the same engine, as ``kv_transfer_config``
            takes one. The engine refuses at start those that cannot stand beside the plug-in.

    >>> llm = LLM("model", **engine_args(QuickMergeConfig(ratio=0.4)))
    """
    transfer: dict[str, Any] = {
        "kv_connector": CONNECTOR_NAME,
        "kv_connector_module_path": CONNECTOR_MODULE,
        "kv_role": ROLE,
        "kv_load_failure_policy": "fail",
        "kv_connector_extra_config": {REPORT_KEY: (config or QuickMergeConfig()).to_dict()},
    }
    if others:
        transfer = {
            "kv_connector": "MultiConnector",
            "kv_role": ROLE,
            "kv_load_failure_policy": "fail",
            "kv_connector_extra_config": {"connectors": [transfer, *map(dict, others)]},
        }
    return {
        "kv_transfer_config": transfer,
        "worker_cls": WORKER_CLASS,
        "scheduler_cls": SCHEDULER,
    }


def engine_cli_args(
    config: QuickMergeConfig | None = None, others: Sequence[Mapping[str, Any]] = ()
) -> list[str]:
    """The same as flags of ``vllm serve``, with HTTP 400 for bad options of a request and a
    report in every answer."""
    arguments = engine_args(config, others)
    return [
        "--kv-transfer-config",
        json.dumps(arguments["kv_transfer_config"]),
        "--worker-cls",
        arguments["worker_cls"],
        "--scheduler-cls",
        arguments["scheduler_cls"],
        *(part for one in MIDDLEWARE for part in ("--middleware", one)),
    ]
