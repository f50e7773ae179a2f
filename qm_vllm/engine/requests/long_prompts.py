"""Prompts longer than ``max_model_len``: vLLM cannot read them, so they are compressed or refused.

Whether an answer fits beside the tokens that are kept is checked twice: by a frontend, with what
the budget keeps at least, so that a caller hears of it at once, and with the exact number by the
plan.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qm_vllm.config import ConfigError, QuickMergeConfig
from qm_vllm.engine.facts import EngineFacts
from qm_vllm.engine.memory import bound_kept, most_kept
from qm_vllm.engine.messages import JobSpec
from qm_vllm.engine.parts import parted, places_needed, tail_tokens
from qm_vllm.engine.requests.demands import Room, demand_of, fits, must_fit
from qm_vllm.engine.untouched import Untouched
from qm_vllm.request_options import parse_request_args
from qm_vllm_patches.requests import Arrival


def longest_admitted(options: dict[str, Any]) -> int | None:
    """Tokens of the longest prompt that frontends let through; None: the model's length.

    Args:
        options: of the engine.
    """
    longest = options.get("max_source_tokens")
    return longest if isinstance(longest, int) else None


def early_refusal(
    options: dict[str, Any], extra_args: dict[str, Any] | None, tokens: int, max_tokens: int,
    max_model_len: int,
) -> str | None:
    """Why a prompt of at least ``max_model_len`` tokens cannot be served; None: it may be.

    Args:
        options: of the engine. extra_args: of the request's sampling parameters.
        tokens: N. max_tokens: of its answer.
    """
    try:
        config = QuickMergeConfig.from_dict(options).override(parse_request_args(extra_args))
        kept = bound_kept(config, tokens)
    except ConfigError as error:
        return refused(tokens, max_model_len, f"invalid option: {error}")
    if not config.enabled:
        return refused(tokens, max_model_len, "compression is disabled for this request")
    problem = no_room(kept, max_tokens, max_model_len)
    return None if problem is None else refused(tokens, max_model_len, problem)


def refused(tokens: int, max_model_len: int, reason: str) -> str:
    """Why a request is not compressed, as its client hears it: with plain vLLM, or not at all."""
    return reason if tokens < max_model_len else (
        f"The prompt has {tokens} tokens and max_model_len is {max_model_len}, so it is served "
        f"compressed or not at all: {reason}"
    )


def refuse_long(arrival: Arrival) -> None:
    """Refuse what the encoder cannot read, of a prompt that vLLM cannot.

    Raises:
        Untouched: the request has an adapter, or its prompt holds more than text.
    """
    for present, kind, what in (
        (arrival.lora is not None, "lora", "a request with a LoRA adapter"),
        (bool(arrival.media), "multimodal", "a prompt with images, audio or video"),
    ):
        if present:
            raise Untouched(kind, f"{what} is read by vLLM alone, up to max_model_len; shorten it")


def no_room(kept: int, max_tokens: int, max_model_len: int) -> str | None:
    """A sentence where kept tokens and answer are more than the model's length.

    Args:
        kept: K. max_tokens: of the answer; one of at least ``max_model_len`` asks for as many as
            fit.
    """
    answer = 1 if max_tokens >= max_model_len else max_tokens
    if kept + answer <= max_model_len:
        return None
    return (
        f"{kept} tokens would be kept, which with max_tokens={answer} is more than "
        f"max_model_len={max_model_len}; lower ratio, max_kept or max_tokens"
    )


def fitted(
    spec: JobSpec, protected: int, max_tokens: int, facts: EngineFacts, room: Room
) -> JobSpec:
    """The job of a long prompt: as a whole if the model and the engine can, else in parts.

    Args:
        protected: positions that stay. max_tokens: of the answer.

    Raises:
        ConfigError: max_kept cannot hold the protected positions.
        Untouched: it cannot be served; the message says what to change.
    """
    kept = most_kept(spec.config, len(spec.token_ids), protected, spec.block_size)
    problem = no_room(kept, max_tokens, facts.max_model_len)
    if problem:
        raise Untouched("too_long", problem)
    trained = spec.rows <= facts.trained_length
    if trained:
        try:
            must_fit(spec, demand_of(spec, protected, facts), facts, room)
            return spec
        except Untouched as why:
            if spec.config.delivery != "inject":
                raise
            too_large = str(why)
    elif spec.config.delivery != "inject":
        raise Untouched(
            "too_long",
            f"the model reads {facts.trained_length} tokens; delivery={spec.config.delivery!r} "
            'reads a prompt as a whole, "inject" in parts',
        )
    else:
        too_large = f"the model reads {facts.trained_length} tokens"
        spec = replace(spec, config=replace(spec.config, positions="compact"))
    return _in_parts(spec, protected, too_large, facts, room)


def _in_parts(
    spec: JobSpec, protected: int, too_large: str, facts: EngineFacts, room: Room
) -> JobSpec:
    config, count = spec.config, len(spec.token_ids)
    for name, value in (("alpha", config.alpha), ("max_error", config.max_error)):
        if value is not None:
            raise Untouched(
                "invalid_option",
                f"invalid option: {name}={value} measures a prompt as a whole, and this one must "
                f"be read in parts ({too_large}); use ratio or max_kept",
            )
    around = tail_tokens(config) + len(spec.hint)

    def parts_of(span: int) -> JobSpec | None:
        bounds = parted(count, span, around)
        return None if bounds is None else replace(spec, parts=bounds)

    low, high = 0, min(facts.trained_length, spec.rows)
    while low < high:  # the longest span that fits
        middle = (low + high + 1) // 2
        tried = parts_of(middle)
        if tried is None or (
            places_needed(tried) <= facts.trained_length
            and fits(demand_of(tried, protected, facts), room)
        ):
            low = middle
        else:
            high = middle - 1
    found = parts_of(low)
    if found is None:
        raise Untouched(
            "too_long", f"{too_large}, and no part of it fits beside what is kept; lower ratio or "
            "max_kept, or raise job_memory_share"
        )
    return found
