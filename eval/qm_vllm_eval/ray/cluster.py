"""A Ray cluster for one run: the one that is there, or a local one that ends with the run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qm_vllm.errors import UserError

EXTRA = "pip install './eval[ray]' from a checkout of qm_vllm"
SPARE_CPUS = 2
"""Logical CPUs of a local cluster beside the replicas': for reading and for Ray Data's maps."""


@dataclass(frozen=True)
class Cluster:
    """What a run may use. ``gpus``: of the whole cluster; 0 means that replicas run on CPUs."""

    address: str
    cpus: float
    gpus: float

    def check(self, replicas: int, width: int) -> None:
        """Raise UserError if the cluster cannot hold so many replicas of ``width`` GPUs or CPUs."""
        kind, there = ("GPU", self.gpus) if self.gpus else ("CPU", self.cpus)
        if replicas * width > there:
            raise UserError(
                f"{replicas} replicas of {width} {kind}s do not fit into the cluster, which has "
                f"{there:g}; lower --replicas, --scaling or --tensor-parallel"
            )


@contextmanager
def cluster(address: str | None, cpus: int) -> Iterator[Cluster]:
    """Connect to a cluster; or start a local one, which ends with this process at the latest.

    Args:
        address: as ``ray.init`` takes it; None: a local cluster.
        cpus: logical CPUs that the replicas take. A local cluster offers at least these.

    Raises:
        UserError: Ray is missing, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(f"{error.name} is missing; install it with {EXTRA}") from error
    quiet = {"include_dashboard": False, "num_cpus": cpus + SPARE_CPUS} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"Ray did not start at {address or 'this machine'}: {error}") from error
    try:
        held = ray.cluster_resources()
        yield Cluster(address or "local", held.get("CPU", 0.0), held.get("GPU", 0.0))
    finally:
        ray.shutdown()
