"""Decides what happens to one arriving request: what its job does and needs, or why it has none."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass

from qm_vllm.compress import protected_positions, round_to_blocks
from qm_vllm.config import ConfigError, QuickMergeConfig
from qm_vllm.engine.facts import EngineFacts
from qm_vllm.engine.memory import bound_kept, job_bytes
from qm_vllm.engine.messages import JobSpec
from qm_vllm.engine.requests.chat_turns import places
from qm_vllm.engine.requests.job_board import Demand
from qm_vllm.engine.untouched import Untouched, without_layers
from qm_vllm.layers import resolve_layers
from qm_vllm.request_options import check_ranges, parse_request_args
from qm_vllm.turns import kept_turns
from qm_vllm_patches.requests import Arrival


@dataclass(frozen=True)
class Room:
    """What an engine has for one job.

    Attributes:
        max_tokens: longest prompt. max_bytes: of worker memory. None: any.
        blocks: KV blocks of the engine; None: not known yet.
    """

    max_tokens: int | None = None
    max_bytes: int | None = None
    blocks: int | None = None


@dataclass(frozen=True)
class RequestPlan:
    """A request that will be compressed.

    Attributes:
        spec: of its job, without id and blocks.
        demand: what the job needs.
        protected: positions that stay whatever their score.
        asked: positions that the budget allows, or the most that it can.
    """

    spec: JobSpec
    demand: Demand
    protected: int
    asked: int

    @property
    def config(self) -> QuickMergeConfig:
        """The request's own configuration."""
        return self.spec.config


def plan_request(
    arrival: Arrival, base: QuickMergeConfig, facts: EngineFacts, room: Room
) -> RequestPlan:
    """Validate a request's options against the engine, and say what its job is.

    Raises:
        Untouched: with the reason, for anything that cannot or should not be compressed.
    """
    config = _options(arrival, base, facts)
    _refuse(arrival, config, room)
    if config.delivery == "inject" and facts.no_inject:
        raise Untouched("no_inject", facts.no_inject)
    try:
        depth, score_layers = _layers(config, facts)
        config = config if facts.has_adapter else without_layers(config)
        spec, protected = _spec(arrival, config, depth, score_layers, facts)
        asked = bound_kept(config, arrival.tokens)
        demand = _demand(spec, protected, facts)
    except ConfigError as error:
        raise Untouched("invalid_option", f"invalid option: {error}") from error
    _fit(demand, arrival.tokens, room)
    return RequestPlan(spec, demand, protected, asked)


def _options(arrival: Arrival, base: QuickMergeConfig, facts: EngineFacts) -> QuickMergeConfig:
    if not arrival.generates:
        raise Untouched("pooling", "not a text generation request")
    try:
        given = parse_request_args(arrival.extra_args)
        config = base.override(given)
        if "protect_ranges" in given:
            check_ranges(config.protect_ranges, arrival.tokens)
        if "keep_roles" in given and config.keep_roles and facts.chat.problem:
            raise ConfigError(f"keep_roles cannot work here: {facts.chat.problem}; use "
                              "protect_ranges")
    except ConfigError as error:
        raise Untouched("invalid_option", f"invalid option: {error}") from error
    return config


def _refuse(arrival: Arrival, config: QuickMergeConfig, room: Room) -> None:
    tokens = arrival.tokens
    if not config.enabled:
        raise Untouched("disabled", "disabled for this request")
    for present, kind, reason in (
        (arrival.has_embeddings, "embeddings",
         "the prompt has embeddings instead of token ids"),
        (arrival.multimodal, "multimodal", "the prompt has images, audio or video"),
        (arrival.resumable, "streaming_input", "streaming input sessions are not supported"),
        (arrival.lora, "lora", "LoRA requests are not supported"),
        (arrival.prompt_logprobs, "prompt_logprobs",
         "prompt_logprobs needs every prompt position"),
        (tokens < config.min_tokens, "short",
         f"{tokens} prompt tokens are fewer than min_tokens={config.min_tokens}"),
        (room.max_tokens is not None and tokens > room.max_tokens, "too_long",
         f"{tokens} prompt tokens are more than max_source_tokens={room.max_tokens}, "
         "which is fixed when the engine starts"),
    ):
        if present:
            raise Untouched(kind, reason)


def _layers(config: QuickMergeConfig, facts: EngineFacts) -> tuple[int, tuple[int, int]]:
    if not facts.has_adapter:
        return 0, (0, 0)
    return resolve_layers(config, facts.num_layers)


def _spec(
    arrival: Arrival, config: QuickMergeConfig, depth: int, score_layers: tuple[int, int],
    facts: EngineFacts,
) -> tuple[JobSpec, int]:
    """The job, and how many positions it protects."""
    ids = arrival.token_ids
    assert ids is not None
    block_size = facts.block_size if config.delivery == "inject" else None
    chat = facts.chat.find(ids) if config.keep_roles else []
    turns = tuple(kept_turns(config, chat, len(ids)))
    special = places(ids, facts.special_ids) if config.protect_special else []
    protected = protected_positions(
        config, len(ids), special=special, ranges=[(start, stop) for _, start, stop in turns]
    )
    digest = hashlib.sha256(array("q", ids).tobytes())
    layers = (depth, *score_layers, block_size)
    for part in (config.fingerprint(), facts.model_key, repr(layers), repr(arrival.salt)):
        digest.update(part.encode())
    if arrival.handle.skips_cache:  # its blocks are for itself alone
        digest.update(arrival.request_id.encode())
    spec = JobSpec(
        id=0, key=digest.hexdigest(), token_ids=ids, config=config, encoder_layers=depth,
        score_layers=score_layers, special_positions=special, block_size=block_size, turns=turns,
    )
    return spec, int(protected.sum())


def _demand(spec: JobSpec, protected: int, facts: EngineFacts) -> Demand:
    """What the job needs.

    Raises:
        ConfigError: max_kept cannot hold the protected positions.
    """
    tokens, size = len(spec.token_ids), spec.block_size
    at_most = bound_kept(spec.config, tokens, protected)
    if size is not None:
        at_most = round_to_blocks(at_most, tokens, protected, size)
    held = job_bytes(spec.config, facts.shape, tokens, at_most)
    if size is None:
        return Demand(held, 0, 0, 0)
    kept = -(-max(0, at_most - 1) // size)
    # Where results are not found through the prefix cache, they are copied once.
    spare = 1 if facts.prefix_caching else kept + 1
    return Demand(held, -(-tokens // size), kept, spare)


def _fit(demand: Demand, tokens: int, room: Room) -> None:
    if room.max_bytes is not None and demand.bytes > room.max_bytes:
        raise Untouched(
            "too_long",
            f"a job of {tokens} prompt tokens needs {_mib(demand.bytes)} and "
            f"{_mib(room.max_bytes)} are set aside for jobs; raise job_memory_share",
        )
    if room.blocks is not None and not demand.fits(room.blocks):
        raise Untouched(
            "too_long",
            f"a job of {tokens} prompt tokens needs {max(demand.blocks, demand.kept)} KV blocks "
            f"and {demand.spare} more, and the engine has {room.blocks}",
        )


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
