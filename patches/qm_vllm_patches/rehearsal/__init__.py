"""A rehearsal when an engine starts: a request goes through vLLM's own code, and somebody listens.

Signatures say what could be called; this says what is called, and in which order. All work for a
request that is held back is done in steps without tokens, so these come first. No model runs and
no process is started: a scheduler of vLLM's own class serves one request out of a pool of a few
blocks, and the functions with which the model runners talk to a connector are called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from qm_vllm_patches.rehearsal.held_request import serve
from qm_vllm_patches.rehearsal.stage import Missed, bare_config
from qm_vllm_patches.rehearsal.worker_steps import runner_v1, runner_v2
from qm_vllm_patches.scheduler import AsyncShadowScheduler, SyncShadowScheduler

Outcome = tuple[str, str | None]
"""What was rehearsed, and a sentence on what went otherwise; None: nothing."""

ACTS: dict[str, Callable[[Any], None]] = {
    "a request held back": partial(serve, kind=SyncShadowScheduler, ahead=False),
    "a request held back, scheduling ahead": partial(
        serve, kind=AsyncShadowScheduler, ahead=True
    ),
    "steps of Model Runner V1": runner_v1,
    "steps of Model Runner V2": runner_v2,
}

GROUPS = {
    "layers that keep less": partial(serve, kind=SyncShadowScheduler, ahead=False, grouped=True),
    "layers for which less is brought": partial(
        serve, kind=SyncShadowScheduler, ahead=False, grouped=True, brings=True
    ),
}
"""What an engine needs beside that whose layers do not all keep as much."""

NOISY = tuple(
    f"vllm.distributed.kv_transfer.kv_connector.{name}" for name in ("factory", "v1.base")
)
"""They log each connector that is made."""


def rehearse(acts: Mapping[str, Callable[[Any], None]] = ACTS) -> list[Outcome]:
    """Serve one request in each kind of scheduler, and play steps of each model runner."""
    with _quiet():
        config = bare_config()
        return [(name, _problem(act, config)) for name, act in acts.items()]


@contextmanager
def _quiet() -> Iterator[None]:
    """Nobody shall read that connectors are made which serve nobody."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _problem(act: Callable[[Any], None], config: Any) -> str | None:
    try:
        act(config)
    except Missed as missed:
        return str(missed)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
