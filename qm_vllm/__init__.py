"""Prompt compression inside vLLM: a long prompt served from a fraction of its KV blocks.

Importing this package imports neither vLLM nor torch and changes nothing; the plug-in is
active only in an engine that was started with :func:`engine_args`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qm_vllm.api import engine_args, engine_cli_args
from qm_vllm.config import ConfigError, QuickMergeConfig
from qm_vllm.request_options import request_args

if TYPE_CHECKING:
    from qm_vllm.compress import Compressed, compress

__version__ = "0.1.0"
__all__ = [
    "Compressed",
    "ConfigError",
    "QuickMergeConfig",
    "__version__",
    "compress",
    "engine_args",
    "engine_cli_args",
    "request_args",
]


def __getattr__(name: str) -> Any:
    if name in ("compress", "Compressed"):
        import importlib

        return getattr(importlib.import_module("qm_vllm.compress"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
