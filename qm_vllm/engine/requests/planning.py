"""Decides what happens to one arriving request: its configuration, or why it is left alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qm_vllm.compress import needs
from qm_vllm.config import ConfigError, QuickMergeConfig
from qm_vllm.engine.facts import EngineFacts
from qm_vllm.layers import resolve_layers
from qm_vllm.request_options import check_ranges, parse_request_args

if TYPE_CHECKING:
    from vllm.v1.request import Request


class Untouched(Exception):
    """The request goes to plain vLLM; the message is the reason in its report.

    Attributes:
        kind: the same in one word, for the metrics.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class RequestPlan:
    """A request that will be compressed, with the layers in use resolved."""

    config: QuickMergeConfig
    encoder_layers: int
    score_layers: tuple[int, int]


def plan_request(request: Request, base: QuickMergeConfig, facts: EngineFacts) -> RequestPlan:
    """Validate a request's options against the engine.

    Raises:
        Untouched: with the reason, for anything that cannot or should not be compressed.
    """
    params = request.sampling_params
    if params is None:
        raise Untouched("pooling", "not a text generation request")
    tokens = request.num_prompt_tokens
    try:
        given = parse_request_args(params.extra_args)
        config = base.override(given)
        if "protect_ranges" in given:
            check_ranges(config.protect_ranges, tokens)
        if "keep_roles" in given and config.keep_roles and facts.chat.problem:
            raise ConfigError(f"keep_roles cannot work here: {facts.chat.problem}; use "
                              "protect_ranges")
    except ConfigError as error:
        raise Untouched("invalid_option", f"invalid option: {error}") from error
    if not config.enabled:
        raise Untouched("disabled", "disabled for this request")
    for present, kind, reason in (
        (request.prompt_token_ids is None or request.prompt_embeds is not None, "embeddings",
         "the prompt has embeddings instead of token ids"),
        (bool(request.mm_features), "multimodal", "the prompt has images, audio or video"),
        (request.resumable, "streaming_input", "streaming input sessions are not supported"),
        (request.lora_request is not None, "lora", "LoRA requests are not supported"),
        (params.prompt_logprobs is not None, "prompt_logprobs",
         "prompt_logprobs needs every prompt position"),
        (tokens < config.min_tokens, "short",
         f"{tokens} prompt tokens are fewer than min_tokens={config.min_tokens}"),
        (tokens > facts.max_source_tokens, "too_long",
         f"{tokens} prompt tokens are more than max_source_tokens={facts.max_source_tokens}, "
         "which is fixed when the engine starts"),
    ):
        if present:
            raise Untouched(kind, reason)
    if config.delivery == "inject" and facts.no_inject:
        raise Untouched("no_inject", facts.no_inject)
    if not facts.has_adapter:
        return _embedding_plan(config)
    return _layer_plan(config, facts.num_layers)


def embedding_config(config: QuickMergeConfig) -> QuickMergeConfig | None:
    """The configuration for scoring token embeddings alone; None if its score needs attention."""
    if config.saliency == "auto":
        config = replace(config, saliency="entropy")
    return None if "attention" in needs(config) else config


def _embedding_plan(config: QuickMergeConfig) -> RequestPlan:
    """Without an adapter only the token embeddings can be scored."""
    if config.max_error is not None:
        raise Untouched(
            "no_attention",
            f"max_error={config.max_error} needs attention, and this model has no adapter; use "
            "ratio or max_kept",
        )
    blind = embedding_config(config)
    if blind is None:
        raise Untouched(
            "no_attention",
            f"saliency={config.saliency!r} needs attention, and this model has no adapter; "
            "use 'auto', 'entropy', 'norm' or 'ned'"
        )
    return RequestPlan(blind, 0, (0, 0))


def _layer_plan(config: QuickMergeConfig, num_layers: int) -> RequestPlan:
    try:
        depth, score = resolve_layers(config, num_layers)
    except ConfigError as error:
        raise Untouched("invalid_option", f"invalid option: {error}") from error
    return RequestPlan(config, depth, score)
