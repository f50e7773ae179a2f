"""The one configuration object of qm_vllm, shared by the pure core and the vLLM plug-in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from qm_vllm import option_checks as checks
from qm_vllm import options as declared
from qm_vllm.option_checks import ConfigError as ConfigError
from qm_vllm.options import Form, Option, Setter, option
from qm_vllm.presets import with_preset

SALIENCIES = ("auto", "query", "leverage", "entropy", "norm", "ned")
GROUPINGS = ("contiguous", "knn", "chain")
MERGES = ("weighted", "select", "mean")
DELIVERIES = ("auto", "inject", "native", "prefill")
POSITIONS = ("source", "compact")
ROLES = ("system", "user", "assistant", "tool", "last_user")

REQUEST, RESEARCH = Setter.REQUEST, Setter.RESEARCH
DEFAULT_RATIO = 0.4


def _research_options(name: str, value: Any) -> tuple[str, ...]:
    """Names of research options, or "all"; which ones there are is known once all are declared."""
    return checks.some(name, value, ("all", *sorted(QuickMergeConfig.RESEARCH_FIELDS)))


@dataclass(frozen=True)
class QuickMergeConfig:
    """What to keep of a prompt, and how the engine works on it.

    Immutable, validated, JSON-serialisable. The fields named in :attr:`REQUEST_FIELDS` can be
    overridden by a single request; the rest are fixed when the engine starts. What a field means,
    its unit and range stand in its ``help``; :mod:`qm_vllm.options` says what else is declared.

    Raises:
        ConfigError: a value is out of range, with the field, the value and what is allowed.
    """

    # --- which requests ----------------------------------------------------------------------
    enabled: bool = option(
        True, check=checks.boolean, by=REQUEST, changes_result=False, flags="--enabled/--off",
        help="Compress prompts, or leave all but those that ask for it to plain vLLM",
    )
    min_tokens: int = option(
        256, check=partial(checks.integer, low=2), by=REQUEST, changes_result=False,
        help="Prompts with fewer tokens than this (at least 2) pass untouched",
    )

    # --- budget: how many positions K of the N source tokens stay ----------------------------
    ratio: float | None = option(
        None, check=partial(checks.real, low=0.0, high=1.0, open_low=True), by=REQUEST,
        shown=f"{DEFAULT_RATIO}, if no other budget is set",
        help="Share of the prompt's tokens to keep, in (0, 1]; 1 keeps all",
    )
    max_kept: int | None = option(
        None, check=partial(checks.integer, low=1), by=REQUEST,
        help="Keep at most this many tokens; they must hold the protected ones",
    )
    alpha: float | None = option(
        None, check=partial(checks.real, low=0.0, high=1.0), by=REQUEST,
        help="Keep tokens whose normalised saliency reaches this, in [0, 1] (the paper: 0.45)",
    )
    max_error: float | None = option(
        None, check=partial(checks.real, low=0.0, high=1.0), by=REQUEST,
        help="Keep the fewest tokens with which no head of the prompt's end (64 tokens) reads "
             "something else by more than this share, in [0, 1]; no measure of quality",
    )
    min_kept: int = option(
        1, check=partial(checks.integer, low=1), by=REQUEST,
        help="Keep at least this many tokens, unless the prompt is shorter",
    )

    # --- protected positions: kept whatever their score --------------------------------------
    protect_first: int = option(
        4, check=partial(checks.integer, low=0), by=REQUEST,
        help="Tokens at the head of the prompt that always stay (attention sinks)",
    )
    protect_last: int = option(
        32, check=partial(checks.integer, low=1), by=REQUEST,
        help="Tokens at the end of the prompt that always stay (question, end of chat template); "
             "with head_share and a visible question in KV heads that look things up",
    )
    protect_special: bool = option(
        True, check=checks.boolean, by=REQUEST,
        help="Whether the tokenizer's special tokens always stay",
    )
    protect_ranges: tuple[tuple[int, int], ...] = option(
        (), check=checks.ranges, by=REQUEST, form=Form.JSON,
        help="Half-open token ranges that stay, such as [[100, 140]]; a request's must lie in "
             "its prompt, the engine's are clipped to it",
    )
    keep_roles: str | tuple[str, ...] = option(
        "auto", check=partial(checks.some_or_auto, allowed=ROLES), by=REQUEST, form=Form.NAMES,
        help=f"Turns of a chat that stay whole: some of {', '.join(ROLES)} (not a tool's); none; "
             "auto: what holds schemas of tools; system and last_user up to half of the budget",
    )

    # --- stage 1: saliency -------------------------------------------------------------------
    saliency: str = option(
        "auto", check=partial(checks.choice, allowed=SALIENCIES), by=RESEARCH,
        help=f"What scores a token: {', '.join(SALIENCIES[1:])}; auto: query; where "
             "nothing may look, leverage with native delivery, else entropy",
    )
    query_visible: bool = option(
        True, check=checks.boolean, by=REQUEST, flags="--query-visible/--query-blind",
        help="Whether the choice may look at the end of the prompt (the question); false for "
             "documents that are compressed once and asked about later",
    )
    hint: str = option(
        "auto", check=checks.hint, by=REQUEST,
        help="What will be asked of the prompt, at most 1,024 characters: it steers what stays and "
             "is no part of the prompt; with query_visible false it alone looks; empty: none; "
             "auto: the field names of the request's JSON schema, if it has one",
    )
    encoder_layers: int | None = option(
        None, check=partial(checks.integer, low=1), by=RESEARCH,
        shown="calibrated, else two thirds of the depth",
        help="E, the number of lower layers that run over the whole prompt",
    )
    window_layers: int | None = option(
        None, check=partial(checks.integer, low=1), by=RESEARCH,
        shown="calibrated, else a fifth of the depth",
        help="Layers just below E, without windows, that say what the prompt's end looks at",
    )
    score_layers: tuple[int, int] | None = option(
        None, check=checks.pair, by=RESEARCH, form=Form.JSON,
        shown="a sixth to a third of the depth",
        help="Half-open range of layers, at or below E, whose inputs give the entropy: [5, 10]",
    )
    logit_scale: float = option(
        24.0, check=partial(checks.real, low=0.0, high=1e4, open_low=True), by=RESEARCH,
        help="Scale of the entropy's cosine logits (eq. 1), greater than 0; sqrt(D) at D = 576",
    )
    head_share: float = option(
        1.0, check=partial(checks.real, low=0.0, high=1.0), by=RESEARCH,
        help="Share of the budget, in [0, 1], that a KV head which looks nothing up spends on "
             "tokens of its own; less the more it does, at most 0.05; native delivery alone",
    )

    # --- stage 2: grouping and merging -------------------------------------------------------
    grouping: str = option(
        "contiguous", check=partial(checks.choice, allowed=GROUPINGS), by=RESEARCH,
        help=f"Which kept token a dropped one joins: {', '.join(GROUPINGS)}",
    )
    merge: str = option(
        "weighted", check=partial(checks.choice, allowed=MERGES), by=RESEARCH,
        help="What a group becomes: its mean weighted by mass (weighted), its kept token alone "
             "(select) or its plain mean (mean)",
    )
    epsilon: float = option(
        0.01, check=partial(checks.real, low=0.0, high=1.0), by=RESEARCH,
        help="Mass of a dropped token, in [0, 1]",
    )

    # --- delivery ----------------------------------------------------------------------------
    delivery: str = option(
        "auto", check=partial(checks.choice, allowed=DELIVERIES), by=REQUEST,
        help="How vLLM gets the result: inject runs the model's lower layers over the prompt and "
             "writes the KV of the kept positions; native lets vLLM prefill the prompt and copies "
             "the KV of the kept ones, for any model; prefill lets vLLM prefill the kept tokens; "
             "auto: native from 1,024 tokens on if prefixes are cached, else inject if the model "
             "has an adapter and that is faster (docs/serving.md), else native",
    )
    positions: str = option(
        "source", check=partial(checks.choice, allowed=POSITIONS), by=RESEARCH,
        help="Where injected keys sit: as far from the prompt's end as they were (source), or at "
             "0..K-1 (compact), for prompts beyond the model's trained length",
    )
    details: bool = option(
        False, check=checks.boolean, by=RESEARCH,
        help="Return kept indices, scores and groups in the request's report",
    )

    # --- engine: fixed at start --------------------------------------------------------------
    calibration: str | None = option(
        None, check=checks.text, changes_result=False,  # the layers that it names are in the hash
        shown="the package's own for this model, if any",
        help="JSON file of `qm-vllm calibrate` with the layers to use where none are named",
    )
    encoder_chunk_tokens: int = option(
        2048, check=partial(checks.integer, low=16),
        help="Encoder work between two steps, in tokens (16 or more); less delays others less",
    )
    encoder_batch: bool = option(
        False, check=checks.boolean,
        help="Encode short prompts that wait together; near ties then depend on the others",
    )
    max_source_tokens: int | None = option(
        None, check=partial(checks.integer, low=2), changes_result=False,
        shown="max_model_len",
        help="Prompt tokens that may be in the encoder at once, over all jobs; a longer prompt "
             "passes untouched. More than max_model_len: prompts of up to so many are served, too",
    )
    max_live_jobs: int = option(
        4, check=partial(checks.integer, low=1), changes_result=False,
        help="Jobs whose states a worker holds at once (at least 1)",
    )
    job_memory_share: float = option(
        0.1, check=partial(checks.real, low=0.0, high=0.5, open_low=True), changes_result=False,
        help="Largest share of the KV cache's memory, in (0, 0.5], that is set aside for the "
             "states of running compression jobs",
    )
    memo_bytes: int = option(
        64 << 20, check=partial(checks.integer, low=0, high=1 << 40), changes_result=False,
        shown=f"{64 << 20} (64 MiB)",
        help="Bytes of remembered results, so that a repeated prompt can use vLLM's prefix cache",
    )
    layer_share: float | None = option(
        None, check=partial(checks.real, low=0.0, high=0.9),
        shown="0.6 where vLLM prefills all prompts, else 0",
        help="Share of all KV entries, in [0, 0.9], for layers that look things up; 0: all keep as "
             "many. Native delivery alone, inject is ruled out",
    )
    strict_version: bool = option(
        False, check=checks.boolean, changes_result=False,
        help="Refuse a vLLM that is newer than those that were tried, though it passes all checks",
    )
    allow_options: tuple[str, ...] = option(
        (), check=_research_options, form=Form.NAMES, changes_result=False, shown="none",
        help="Research options that requests over HTTP may set: names with commas, or all",
    )

    REQUEST_FIELDS: ClassVar[frozenset[str]]
    """Options that a request may set."""
    RESEARCH_FIELDS: ClassVar[frozenset[str]]
    """Those of them that an HTTP server refuses unless ``allow_options`` has them."""
    BUDGET_FIELDS: ClassVar[tuple[str, ...]] = ("ratio", "max_kept", "alpha", "max_error")
    DEFAULT_RATIO: ClassVar[float] = DEFAULT_RATIO

    def __post_init__(self) -> None:
        for name, one in OPTIONS.items():
            object.__setattr__(self, name, one.checked(getattr(self, name)))
        checks.agree(self)

    @property
    def effective_saliency(self) -> str:
        """The score in use once "auto" and the delivery are resolved."""
        blind = "leverage" if self.delivery == "native" else "entropy"
        looks = self.query_visible or self.hint not in checks.NO_HINT
        return self.saliency if self.saliency != "auto" else "query" if looks else blind

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_dict` reads it back."""
        return declared.plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuickMergeConfig:
        """Build from plain JSON types.

        Raises:
            ConfigError: a name is unknown or a value impossible.
        """
        return cls(**declared.known(values, OPTIONS))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> QuickMergeConfig:
        """The defaults with a named preset on top (:data:`~qm_vllm.presets.PRESETS`), and changes.

        >>> QuickMergeConfig.preset("cache", ratio=0.4)

        Raises:
            ConfigError: no such preset, or a change is unknown or impossible.
        """
        return cls.from_dict(with_preset(name, changes, cls.BUDGET_FIELDS))

    def override(self, values: Mapping[str, Any]) -> QuickMergeConfig:
        """The configuration of one request: this one with some request fields replaced.

        ``preset`` among the values stands for the options that it names; values beside it win.
        A request that names any of :attr:`BUDGET_FIELDS` replaces the whole budget.

        Raises:
            ConfigError: a name is unknown or fixed at engine start, or a value impossible.
        """
        values = dict(values)
        if "preset" in values:
            values = with_preset(values.pop("preset"), values, self.BUDGET_FIELDS)
        if not values:
            return self
        changes = dict(declared.named_by_request(values, OPTIONS))
        if any(name in changes for name in self.BUDGET_FIELDS):
            for name in self.BUDGET_FIELDS:
                changes.setdefault(name, None)
        return dataclasses.replace(self, **changes)

    def fingerprint(self) -> str:
        """Hash of every field that can change which tokens are kept, their KV or the report."""
        return declared.fingerprint(self.to_dict(), OPTIONS)


OPTIONS: dict[str, Option] = declared.declared_options(QuickMergeConfig)
"""The declaration of every field, by name."""
QuickMergeConfig.REQUEST_FIELDS = declared.names_of(OPTIONS, REQUEST, RESEARCH)
QuickMergeConfig.RESEARCH_FIELDS = declared.names_of(OPTIONS, RESEARCH)
