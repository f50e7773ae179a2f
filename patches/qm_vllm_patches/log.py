"""Loggers below vLLM's own: its handler and level apply, so that a server's log shows our lines."""

from __future__ import annotations

import logging


def get_logger(name: str) -> logging.Logger:
    """Logger of a module of this project, under ``vllm.``."""
    return logging.getLogger(f"vllm.{name}")
