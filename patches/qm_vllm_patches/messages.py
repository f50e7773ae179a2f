"""Envelopes in which plain messages travel between vLLM's scheduler and its workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)


@dataclass
class StepEnvelope(KVConnectorMetadata):
    """Scheduler to worker, one for each step."""

    message: Any


@dataclass
class WorkerEnvelope(KVConnectorWorkerMetadata):
    """Worker to scheduler, after a step; ``message.merged(other)`` joins those of two ranks."""

    message: Any

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        """What two tensor-parallel ranks say together."""
        assert isinstance(other, WorkerEnvelope)
        return WorkerEnvelope(self.message.merged(other.message))


@dataclass
class StartEnvelope(KVConnectorHandshakeMetadata):
    """Worker to scheduler, once, when the model and the KV cache are there."""

    message: Any
