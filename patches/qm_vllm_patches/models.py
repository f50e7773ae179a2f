"""vLLM's model registry."""

from __future__ import annotations


def register_architecture(name: str, implementation: str) -> None:
    """Make an architecture known, as ``module:Class``; other models are not touched."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(name, implementation)
