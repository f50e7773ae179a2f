"""Steps without tokens, as vLLM's model runners play them to a connector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qm_vllm_patches.messages import StepEnvelope, WorkerEnvelope
from qm_vllm_patches.rehearsal.stage import RehearsalConnector, expect, small_cache

IN_TURN = {
    "begin": "bind_connector_metadata", "load": "start_load_kv", "work": "get_finished",
    "collect": "build_connector_worker_meta",
}
"""What a worker must be asked in each step: our name, and the hook in which vLLM asks."""


@contextmanager
def _listening(config: Any, when: str) -> Iterator[Any]:
    """A step without tokens, during which the process's connector is one that listens."""
    from vllm.distributed.kv_transfer import kv_transfer_state
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
    from vllm.v1.core.sched.output import SchedulerOutput

    connector = RehearsalConnector(config, KVConnectorRole.WORKER, small_cache())
    step = SchedulerOutput.make_empty()
    step.kv_connector_metadata = StepEnvelope("step")
    own = kv_transfer_state._KV_CONNECTOR_AGENT
    kv_transfer_state._KV_CONNECTOR_AGENT = connector
    try:
        yield step
    finally:
        kv_transfer_state._KV_CONNECTOR_AGENT = own
    heard = connector.worker_side.heard
    expect(heard == list(IN_TURN),
           f"{when} calls {', '.join(IN_TURN[one] for one in heard) or 'nothing'} of the "
           f"connector where {', '.join(IN_TURN.values())} are needed in turn")


def _said(output: Any) -> None:
    told = output.kv_connector_output
    expect(told is not None and isinstance(told.kv_connector_worker_meta, WorkerEnvelope),
           "what a worker says in a step without tokens does not reach the scheduler")


def runner_v1(config: Any) -> None:
    from vllm.forward_context import set_forward_context
    from vllm.v1.worker.kv_connector_model_runner_mixin import KVConnectorModelRunnerMixin as Runner

    with _listening(config, "a step without tokens") as step:
        _said(Runner.kv_connector_no_forward(step, config))
    with (
        _listening(config, "a step with a drafter"),
        set_forward_context(None, config),
        Runner.maybe_get_kv_connector_output(step, defer_finalize=True),
    ):
        pass


def runner_v2(config: Any) -> None:
    from vllm.v1.worker.gpu.kv_connector import ActiveKVConnector

    with _listening(config, "a step without tokens") as step:
        _said(ActiveKVConnector(config, {}).no_forward(step))
