"""What an engine has for jobs, as the workers report it when it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qm_vllm.config import QuickMergeConfig
from qm_vllm.engine.facts import EngineFacts
from qm_vllm.engine.memory import longest_job
from qm_vllm.engine.messages import WorkerStart
from qm_vllm.engine.native.blocks import widest
from qm_vllm.engine.requests.demands import Room
from qm_vllm.option_checks import NO_HINT
from qm_vllm_patches.log import get_logger

logger = get_logger(__name__)


def warn(config: QuickMergeConfig, facts: EngineFacts) -> None:
    """Say once if the engine's own delivery cannot work in it."""
    inject, native = facts.no_inject, facts.no_native
    problem = {"inject": inject, "native": native, "auto": inject and native}.get(config.delivery)
    if config.hint not in NO_HINT:
        problem = problem or facts.hints.problem
    if config.enabled and problem:
        logger.warning("qm_vllm: all requests will pass untouched: %s", problem)
    elif config.enabled and config.delivery == "auto" and inject:
        logger.info("qm_vllm: vLLM prefills the prompts itself: %s", inject)


def told(
    room: Room, messages: Sequence[WorkerStart], config: QuickMergeConfig, facts: EngineFacts
) -> Room:
    """The room with what the workers have seen of the model and of their memory.

    Args:
        messages: of all workers, one at least.
    """
    bound = min(message.job_bytes for message in messages)
    problem = next((one.problem for one in messages if one.problem), None)
    if problem and facts.no_inject is None:
        logger.warning("qm_vllm: the encoder cannot run on this model: %s", problem)
    native = next((one.native_problem for one in messages if one.native_problem), None)
    if native and config.delivery == "native" and facts.no_native is None:
        logger.warning("qm_vllm: all requests will pass untouched: %s", native)
    room = replace(
        room, max_bytes=bound, no_native=room.no_native or native, no_inject=problem
    )
    limits = [room.max_tokens or facts.max_model_len]
    if room.blocks is not None:
        limits.append(room.blocks * facts.block_size // facts.whole_groups)
    most = widest(facts.layer_share, facts.whole_groups)
    logger.info(
        "qm_vllm: %.1f MiB are set aside for compression jobs: prompts of up to %s tokens",
        bound / 2**20, f"{longest_job(config, facts.shape, bound, min(limits), most):,}",
    )
    return room
