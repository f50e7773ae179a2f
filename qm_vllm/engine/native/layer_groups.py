"""Layers that look things up keep more than the others: whether, and which layers these are.

vLLM keeps a block table for each KV-cache group of layers, so the two kinds of layers are groups of
their own. That is decided before the cache is made and holds as long as the engine.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from qm_vllm.compress.layer_budget import LAYER_SHARE
from qm_vllm.config import QuickMergeConfig
from qm_vllm.engine.adapters import FAMILIES
from qm_vllm.engine.agreement import OtherRankFailed, together
from qm_vllm.engine.facts import no_native_settings
from qm_vllm.engine.native.layers import CannotDeliver, look_up_layers
from qm_vllm_patches.log import get_logger
from qm_vllm_patches.rehearsal import GROUPS, rehearse
from qm_vllm_patches.settings import EngineSettings
from qm_vllm_patches.shorter_tables import unknown_backend

logger = get_logger(__name__)


def wanted_share(config: QuickMergeConfig, settings: EngineSettings) -> float:
    """Of all entries, what layers that look things up shall get; 0: all keep as many.

    By itself where nothing is lost: with groups of layers the encoder can no longer put its KV into
    the cache.
    """
    if config.layer_share is not None:
        return config.layer_share
    native = config.delivery == "native" or (
        config.delivery == "auto" and settings.architecture not in FAMILIES
    )
    return LAYER_SHARE if config.enabled and native else 0.0


def no_groups(settings: EngineSettings) -> str | None:
    """Why an engine cannot have groups of layers; None if it can, as far as settings say."""
    if not settings.hybrid_manager:
        return "vLLM's hybrid KV-cache manager is off"
    return no_native_settings(settings)


def chosen_layers(
    config: QuickMergeConfig, settings: EngineSettings, names: Sequence[str], model: Any,
    device: Any, runner: Any,
) -> Collection[str]:
    """Names of the layers that keep more than the others; none where all keep as many.

    Args:
        names: of the layers with a KV cache, which is not there yet.
        model: the loaded module. runner: what vLLM runs it with.
    """
    if not wanted_share(config, settings):
        return ()
    reason = no_groups(settings) or unknown_backend(model)
    if reason is None:
        try:
            for _, problem in rehearse(GROUPS):
                if problem is not None:
                    raise CannotDeliver(problem)
            return together(
                lambda: look_up_layers(model, runner, names, device, settings.max_model_len)
            )
        except (CannotDeliver, OtherRankFailed) as error:
            reason = str(error)
        except Exception as error:  # models come in all shapes; the engine serves them anyway
            logger.exception("qm_vllm: looking for layers that look things up failed")
            reason = f"{type(error).__name__}: {error}"
    tell = logger.info if config.layer_share is None else logger.warning
    tell("qm_vllm: all layers keep as many tokens: %s", reason)
    return ()
