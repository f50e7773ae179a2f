"""vLLM's offloading of KV blocks to host memory, with copies that a CPU can make.

All decisions are vLLM's own; its worker class wants CUDA streams. What is stored is kept apart
from the cache, so that a block that comes back was really there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class Copies(OffloadingWorker):
    """Copies whole blocks of all layers, a step after it was asked to, as a device would."""

    def __init__(self, kv_caches: Any, chunks: int) -> None:
        self.device = [one.tensor for one in kv_caches.tensors]
        self.host = [torch.zeros(chunks, one.shape[1], dtype=one.dtype) for one in self.device]
        self.asked: list[tuple[int, np.ndarray, np.ndarray, bool]] = []
        self.done: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        self.asked.append((job_id, src_spec.block_ids, dst_spec.block_ids, True))
        return True

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        self.asked.append((job_id, src_spec.block_ids, dst_spec.block_ids, False))
        return True

    def _copy(self) -> None:
        for job_id, source, target, stores in self.asked:
            pairs = zip(self.device, self.host, strict=True)
            size = 0
            for device, host in pairs:
                if stores:
                    host[target] = device[source]
                else:
                    device[target] = host[source]
                size += device.shape[1] * len(source)
            self.done.append(TransferResult(job_id, True, size, 1e-6))
        self.asked = []

    def wait(self, job_ids: set[int]) -> None:
        self._copy()

    def get_finished(self) -> list[TransferResult]:
        done, self.done = self.done, []
        self._copy()
        return done


class HostMemory(CPUOffloadingSpec):
    """``spec_name`` and ``spec_module_path`` of an ``OffloadingConnector``; one block a chunk."""

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        return Copies(kv_caches, self.num_chunks)


def offloading(megabytes: int = 64) -> dict[str, Any]:
    """Configuration of such a connector beside ours, for ``engine_args(config, [...])``."""
    return {
        "kv_connector": "OffloadingConnector", "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": HostMemory.__name__, "spec_module_path": __name__,
            "cpu_bytes_to_use": megabytes << 20,
        },
    }
