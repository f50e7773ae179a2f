"""The HTTP server's view of its engine, as the application that serves a request holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qm_vllm_patches.settings import connector_options


@dataclass(frozen=True)
class ServedEngine:
    """The engine behind a server.

    Attributes:
        options: of the plug-in, as the engine was started with them.
        text_config: transformers text configuration of the served model.
    """

    options: dict[str, Any]
    text_config: Any


def served_engine(scope: Any, key: str) -> ServedEngine | None:
    """The engine behind the application of an ASGI scope.

    Args:
        key: of the plug-in's options in the connector's extra configuration.

    Returns:
        None where the scope's application is not vLLM's, is not ready, or its engine was started
        without a connector.
    """
    state = getattr(scope.get("app"), "state", None)
    config = getattr(state, "vllm_config", None)
    transfer = getattr(config, "kv_transfer_config", None)
    if config is None or transfer is None:
        return None
    return ServedEngine(
        options=dict(connector_options(transfer).get(key) or {}),
        text_config=config.model_config.hf_text_config,
    )
