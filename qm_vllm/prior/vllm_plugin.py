"""Entry point of ``vllm.general_plugins``: makes the prior's architecture known, nothing else."""

from __future__ import annotations

ARCHITECTURE = "QuickMergePriorForCausalLM"


def register() -> None:
    """Name the prior in vLLM's model registry and its configuration in transformers'.

    vLLM calls this in every process of an engine. Models of other architectures are not touched.
    """
    from qm_vllm.prior import config  # noqa: F401  importing it registers the configuration
    from qm_vllm_patches.models import register_architecture

    register_architecture(ARCHITECTURE, "qm_vllm_patches.served_prior:ServedPrior")
