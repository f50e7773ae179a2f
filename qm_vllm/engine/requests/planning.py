"""Decides what happens to one arriving request: what its job does and needs, or why it has none."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, replace

from qm_vllm.compress import needs, protected_positions
from qm_vllm.config import ConfigError, QuickMergeConfig
from qm_vllm.engine.facts import EngineFacts
from qm_vllm.engine.memory import bound_kept, most_kept
from qm_vllm.engine.messages import JobSpec
from qm_vllm.engine.native.blocks import group_sizes, own_blocks
from qm_vllm.engine.requests.chat_turns import places
from qm_vllm.engine.requests.demands import Room, demand_of, must_fit
from qm_vllm.engine.requests.job_board import Demand
from qm_vllm.engine.requests.long_prompts import fitted, refuse_long
from qm_vllm.engine.requests.media_rules import refuse_media, without_media
from qm_vllm.engine.requests.schema_names import resolve_hint
from qm_vllm.engine.untouched import Untouched, without_layers
from qm_vllm.layers import resolve_layers
from qm_vllm.option_checks import NO_HINT
from qm_vllm.request_options import check_ranges, parse_request_args
from qm_vllm.turns import SCHEMAS, Turn, beside_budget, kept_turns, wanted_turns
from qm_vllm_patches.log import get_logger
from qm_vllm_patches.requests import Arrival

logger = get_logger(__name__)

NATIVE_EVIDENCE = frozenset({"attention", "leverage"})
"""What is known of a prompt that vLLM prefills."""
NATIVE_FROM = 1024
"""Tokens of the shortest prompt for which one more step of the engine does not count."""


@dataclass(frozen=True)
class RequestPlan:
    """A request that will be compressed.

    Attributes:
        spec: of its job, without id and blocks.
        demand: what the job needs.
        protected: positions that stay whatever their score.
        asked: positions that the budget allows, or the most that it can.
        crowded_out: turns that keep_roles wanted whole and that were too long for it, and others
            with schemas of tools.
    """

    spec: JobSpec
    demand: Demand
    protected: int
    asked: int
    crowded_out: tuple[Turn, ...] = ()

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
    if config.enabled and facts.beyond(arrival.tokens):
        refuse_long(arrival)
    if config.delivery == "auto":
        config = replace(config, delivery=_delivery(arrival, config, facts, room))
    _refuse(arrival, config, room)
    if config.delivery == "inject" and facts.no_inject:
        raise Untouched("no_inject", facts.no_inject)
    if config.delivery == "native":
        problem = facts.no_native or room.no_native
        if facts.beyond(arrival.tokens):
            problem = problem or f"vLLM reads no more than max_model_len={facts.max_model_len}"
        _refuse_native(config, problem)
    elif "leverage" in needs(config):
        raise Untouched(
            "invalid_option",
            'invalid option: saliency="leverage" needs delivery="native": the keys of all layers '
            "are known of a prompt that vLLM prefills alone",
        )
    try:
        return _planned(arrival, resolve_hint(config, arrival.schema, facts), facts, room)
    except Untouched as why:
        if config.hint != "auto" or why.kind != "too_long":
            raise
        # A hint that nobody gave must not be what a prompt is too long with.
        return _planned(arrival, replace(config, hint=""), facts, room)


def _planned(
    arrival: Arrival, config: QuickMergeConfig, facts: EngineFacts, room: Room
) -> RequestPlan:
    try:
        depth, score_layers = _layers(config, facts)
        if not facts.has_adapter and config.delivery != "native":
            config = without_layers(config)
        spec, protected, crowded_out = _spec(arrival, config, depth, score_layers, facts)
        if facts.beyond(arrival.tokens):
            spec = fitted(spec, protected, arrival.max_tokens, facts, room)
        asked = bound_kept(spec.config, arrival.tokens)
        demand = demand_of(spec, protected, facts)
    except ConfigError as error:
        raise Untouched("invalid_option", f"invalid option: {error}") from error
    must_fit(spec, demand, facts, room)
    return RequestPlan(spec, demand, protected, asked, crowded_out)


def plan_or_reason(
    arrival: Arrival, base: QuickMergeConfig, facts: EngineFacts, room: Room
) -> RequestPlan | Untouched:
    """:func:`plan_request`, which never raises: an engine must survive any request."""
    try:
        return plan_request(arrival, base, facts, room)
    except Untouched as why:
        return why
    except Exception as error:
        logger.exception("qm_vllm: planning %s failed", arrival.request_id)
        return Untouched("failed", f"planning failed: {type(error).__name__}: {error}")


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
        (arrival.resumable, "streaming_input", "streaming input sessions are not supported"),
        (arrival.lora is not None and config.delivery != "native", "lora",
         'LoRA requests need delivery="native"'),
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
    refuse_media(arrival, config.delivery)


def _delivery(
    arrival: Arrival, config: QuickMergeConfig, facts: EngineFacts, room: Room
) -> str:
    """What ``delivery="auto"`` means for a request.

    vLLM prefills a long prompt where it caches prefixes: the next turn of a chat, or the next
    question on a document, finds what it computed, and no encoder is as fast as that. Else the
    encoder, where it runs and is faster: it saves work. Else vLLM prefills the prompt; a request
    that cannot get its first token from that takes one more step than without us, so its prompt
    must not be short. With a hint none can: the prefill ends with the hint's last token. Where
    nothing may look, the keys of all layers choose far better than the encoder's entropy, so that
    costs a short prompt its one more step, too. The request alone decides, not what was served
    before: equal prompts keep equal tokens.
    """
    tokens = arrival.tokens
    if facts.beyond(tokens):
        return "inject"
    plain = arrival.lora is None and not arrival.media
    inject = facts.no_inject is None and room.no_inject is None and plain
    wanted = needs(replace(config, delivery="native"))
    native = not (facts.no_native or room.no_native) and wanted <= NATIVE_EVIDENCE
    native &= config.positions == "source" and config.max_error is None
    if not native:
        return "inject" if plain else "native"  # whose reason is the one to read
    shared = facts.prefix_caching and tokens >= NATIVE_FROM
    blind = "leverage" in wanted and (tokens >= NATIVE_FROM or arrival.first)
    better = (shared or blind) and not arrival.one_token
    if inject and tokens >= facts.encode_from and not better:
        return "inject"
    # Whoever wants the details wants the choice made, whatever it costs.
    if config.enabled and config.min_tokens <= tokens and not config.details:
        if arrival.one_token:
            raise Untouched(
                "one_token",
                "the answer has one token, for which no KV is kept, and vLLM would prefill the "
                'prompt in any case; delivery="native" compresses it all the same',
            )
        if tokens < NATIVE_FROM and (config.hint not in NO_HINT or not arrival.first):
            raise Untouched(
                "short",
                f"{tokens} prompt tokens: below {NATIVE_FROM:,} the extra step where vLLM prefills "
                'the prompt would cost too much; delivery="native" does it',
            )
    return "native"


def _refuse_native(config: QuickMergeConfig, problem: str | None) -> None:
    if problem:
        raise Untouched("no_native", f'delivery="native" cannot work here: {problem}')
    for name, value, plain in (
        ("alpha", config.alpha, None), ("max_error", config.max_error, None),
        ("positions", config.positions, "source"),
    ):
        if value != plain:
            raise Untouched(
                "invalid_option",
                f'invalid option: {name}={value!r} needs delivery="inject": it is not known of a '
                "prompt that vLLM prefills",
            )
    if not needs(config) <= NATIVE_EVIDENCE:
        raise Untouched(
            "no_attention",
            f"saliency={config.effective_saliency!r} needs the model's states; a prompt that vLLM "
            'prefills shows its attention and its keys alone, so use saliency="query", "leverage" '
            'or delivery="inject"',
        )


def _layers(config: QuickMergeConfig, facts: EngineFacts) -> tuple[int, tuple[int, int]]:
    if not facts.has_adapter and config.delivery != "native":
        return 0, (0, 0)
    return resolve_layers(config, facts.num_layers)


def _spec(
    arrival: Arrival, config: QuickMergeConfig, depth: int, score_layers: tuple[int, int],
    facts: EngineFacts,
) -> tuple[JobSpec, int, tuple[Turn, ...]]:
    """The job, how many positions it protects, and turns that should be and are not."""
    ids = arrival.token_ids
    assert ids is not None
    block_size = None if config.delivery == "prefill" else facts.block_size
    chat = facts.chat.find(ids) if config.keep_roles else []
    schemas = facts.chat.with_schemas(ids, chat)
    config, beside = beside_budget(config, schemas, len(ids))
    turns = tuple(kept_turns(config, chat, len(ids), beside))
    special = places(ids, facts.special_ids) if config.protect_special else []
    special = without_media(special, arrival.media)
    protected = protected_positions(
        config, len(ids), special=special, ranges=[(start, stop) for _, start, stop in turns]
    )
    digest = hashlib.sha256(array("q", ids).tobytes())
    layers = (depth, *score_layers, block_size)
    for part in (
        config.fingerprint(), facts.model_key, repr(layers), repr(arrival.salt), repr(arrival.lora),
        repr(arrival.media),
    ):
        digest.update(part.encode())
    if arrival.handle.skips_cache:  # its blocks are for itself alone
        digest.update(arrival.request_id.encode())
    protects = int(protected.sum())
    own: list[int] = []
    sizes: tuple[int, ...] = ()
    if config.delivery == "native":
        assert block_size is not None
        kept = most_kept(config, len(ids), protects, block_size)
        sizes = group_sizes(
            kept, len(ids), protects, block_size, facts.keep_less, facts.layer_share
        )
        own = own_blocks(max(sizes, default=kept), facts.windows, block_size, sizes)
    spec = JobSpec(
        id=0, key=digest.hexdigest(), token_ids=ids, config=config, encoder_layers=depth,
        score_layers=score_layers, special_positions=special, block_size=block_size, turns=turns,
        hint=facts.hints.ids(config.hint), group_blocks=tuple(own),
        group_kept=sizes,
    )
    missed = [turn for turn in wanted_turns(config, chat) if turn not in turns]
    missed += [(SCHEMAS, *turn[1:]) for turn in schemas if turn not in (*turns, *missed)]
    return spec, protects, tuple(missed)
