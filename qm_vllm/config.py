"""The one configuration object of qm_vllm, shared by the pure core and the vLLM plug-in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from qm_vllm.option_checks import ConfigError as ConfigError
from qm_vllm.option_checks import boolean, integer, names, ranges, real
from qm_vllm.presets import PRESETS

SALIENCIES = ("auto", "query", "entropy", "norm", "ned")
GROUPINGS = ("contiguous", "knn", "chain")
MERGES = ("weighted", "select", "mean")
DELIVERIES = ("inject", "prefill")
POSITIONS = ("source", "compact")
ROLES = ("system", "user", "assistant", "last_user")


@dataclass(frozen=True)
class QuickMergeConfig:
    """What to keep of a prompt, and how the engine works on it.

    Immutable, validated on construction, JSON-serialisable (:meth:`to_dict`,
    :meth:`from_dict`). The fields named in :attr:`REQUEST_FIELDS` can be overridden by a
    single request; the rest are fixed when the engine starts.

    Raises:
        ConfigError: a value is out of range, with the field, the value and what is allowed.
    """

    # --- which requests ----------------------------------------------------------------------
    enabled: bool = True
    """Compress prompts (True) or leave them to plain vLLM (False)."""
    min_tokens: int = 256
    """Prompts with fewer tokens than this pass untouched. Tokens, >= 2."""

    # --- budget: how many positions K of the N source tokens stay ----------------------------
    ratio: float | None = None
    """K / N, in (0, 1]. If no budget field is set, 0.4. 1.0 keeps every token."""
    max_kept: int | None = None
    """K_max of the paper: upper bound on K. Tokens, >= 1. Must hold the protected positions."""
    alpha: float | None = None
    """The paper's entropy threshold, in [0, 1]: keep a token where its normalised saliency
    is at least alpha. The paper's value is 0.45."""
    max_error: float | None = None
    """Largest relative error, in any head, of what the prompt's last 64 queries read in the
    layers just below E, in [0, 1]: the smallest K that meets it, at most what the other budget
    fields allow. See :class:`~qm_vllm.compress.attention_error.AttentionError`."""
    min_kept: int = 1
    """K_min: lower bound on K, unless the prompt is shorter. Tokens, >= 1."""

    # --- protected positions: kept whatever their score --------------------------------------
    protect_first: int = 4
    """Attention sinks at the head of the prompt. Tokens, >= 0."""
    protect_last: int = 32
    """The tail of the prompt: the question, the chat template's end. Tokens, >= 1."""
    protect_special: bool = True
    """Keep the tokenizer's special tokens."""
    protect_ranges: tuple[tuple[int, int], ...] = ()
    """Half-open token ranges ``(start, stop)`` to keep. A request's must lie in its prompt; those
    that are set when the engine starts are clipped to each prompt."""
    keep_roles: str | tuple[str, ...] = "auto"
    """Turns of a conversation that stay whole: names of :data:`ROLES`, () for none. "auto": the
    system's and the last user's, unless they take more than half of the budget (then the document
    is in there). Needs a chat template whose turns begin with special tokens."""

    # --- stage 1: saliency -------------------------------------------------------------------
    saliency: str = "auto"
    """One of :data:`SALIENCIES`. "auto": "query" if ``query_visible``, else "entropy"."""
    query_visible: bool = True
    """The scores may look at the end of the prompt (the question). False for documents that
    are compressed once and asked about later."""
    encoder_layers: int | None = None
    """E: decoder layers that run over all N tokens. None: as calibrated for the model, else
    two thirds of its layers."""
    window_layers: int | None = None
    """Layers just below E, sliding-window layers not counted, in which the prompt's end says
    what it looks at. None: as calibrated for the model, else a fifth of its layers."""
    score_layers: tuple[int, int] | None = None
    """Half-open range of layers whose input states give the entropy. None: the layers between
    a sixth and a third of the depth. Must end at or below E."""
    logit_scale: float = 24.0
    """Scale of the cosine logits of eq. 1 (sqrt(D) at D = 576). > 0."""

    # --- stage 2: grouping and merging -------------------------------------------------------
    grouping: str = "contiguous"
    """One of :data:`GROUPINGS`: which kept token a dropped one joins."""
    merge: str = "weighted"
    """One of :data:`MERGES`: mass-weighted mean of the group, its anchor alone, plain mean."""
    epsilon: float = 0.01
    """Mass of a dropped token, in [0, 1]."""
    temperature: float = 1.0
    """Temperature of the Gumbel-softmax relaxation (training only). > 0."""

    # --- delivery ----------------------------------------------------------------------------
    delivery: str = "inject"
    """"inject" writes the KV of the kept positions; "prefill" lets vLLM prefill the kept ids."""

    positions: str = "source"
    """Where the injected keys sit: "source" at their distances from the prompt's end, as in the
    full prompt; "compact" at 0..K-1, for prompts beyond the length the model was trained for.
    The prefill delivery is always compact."""

    details: bool = False
    """Return kept indices, scores and groups in the request's report (``qm-vllm inspect``)."""

    # --- engine: fixed at start --------------------------------------------------------------
    calibration: str | None = None
    """JSON file of ``qm-vllm calibrate`` that says how deep the encoder is. None: the one that
    comes with the package for this model, if any. Not read where layers are named."""
    encoder_chunk_tokens: int = 2048
    """Rows per unit of encoder work, and the work of one step as rows through all layers.
    Smaller values delay running requests less. Tokens, >= 16."""
    encoder_batch: bool = False
    """Prompts that wait together and fill at most one chunk go through the encoder layers in one
    pass: fewer and larger operations. The states' last bits, hence near ties in what is kept,
    then depend on what is served at the same time."""
    max_source_tokens: int | None = None
    """Prompt tokens that may be in the encoder at once, over all jobs: bounds the scratch memory. A
    longer prompt passes untouched. None: max_model_len. Tokens, >= 2."""
    max_live_jobs: int = 4
    """Jobs whose states or KV may be held in worker memory at once. >= 1."""
    memo_bytes: int = 64 << 20
    """Bytes of remembered results, so that a repeated prompt can use vLLM's prefix cache."""
    job_memory_share: float = 0.1
    """Largest share of the KV cache's memory set aside for the states of running jobs."""

    REQUEST_FIELDS: ClassVar[frozenset[str]] = frozenset({
        "enabled", "min_tokens", "ratio", "max_kept", "alpha", "min_kept", "protect_first",
        "protect_last", "protect_special", "protect_ranges", "saliency", "query_visible",
        "encoder_layers", "score_layers", "logit_scale", "grouping", "merge", "epsilon",
        "delivery", "positions", "details", "max_error", "window_layers", "keep_roles",
    })
    BUDGET_FIELDS: ClassVar[tuple[str, ...]] = ("ratio", "max_kept", "alpha", "max_error")
    DEFAULT_RATIO: ClassVar[float] = 0.4

    def __post_init__(self) -> None:
        for name in (
            "enabled", "protect_special", "query_visible", "details", "encoder_batch"
        ):
            object.__setattr__(self, name, boolean(name, getattr(self, name)))
        for name, low in (
            ("min_tokens", 2), ("min_kept", 1), ("protect_first", 0), ("protect_last", 1),
            ("encoder_chunk_tokens", 16), ("max_live_jobs", 1), ("memo_bytes", 0),
        ):
            object.__setattr__(self, name, integer(name, getattr(self, name), low))
        for name in ("max_kept", "encoder_layers", "window_layers"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, integer(name, getattr(self, name), 1))
        if self.max_source_tokens is not None:
            bound = integer("max_source_tokens", self.max_source_tokens, 2)
            object.__setattr__(self, "max_source_tokens", bound)
        object.__setattr__(self, "keep_roles", names("keep_roles", self.keep_roles, ROLES))
        if self.ratio is not None:
            object.__setattr__(self, "ratio", real("ratio", self.ratio, 0.0, 1.0, open_low=True))
        for name in ("alpha", "max_error"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, real(name, getattr(self, name), 0.0, 1.0))
        for name, least, most, open_low in (
            ("logit_scale", 0.0, 1e4, True), ("epsilon", 0.0, 1.0, False),
            ("temperature", 0.0, 1e4, True),
        ):
            value = real(name, getattr(self, name), least, most, open_low=open_low)
            object.__setattr__(self, name, value)
        if self.calibration is not None and not isinstance(self.calibration, str):
            raise ConfigError(f"calibration={self.calibration!r} must be the name of a file")
        for name, allowed in (
            ("saliency", SALIENCIES), ("grouping", GROUPINGS), ("merge", MERGES),
            ("delivery", DELIVERIES), ("positions", POSITIONS),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is unknown; allowed: {', '.join(allowed)}"
                )
        object.__setattr__(self, "protect_ranges", ranges(self.protect_ranges))
        if self.score_layers is not None:
            (pair,) = ranges((self.score_layers,), "score_layers")
            object.__setattr__(self, "score_layers", pair)
            if self.encoder_layers is not None and pair[1] > self.encoder_layers:
                raise ConfigError(
                    f"score_layers={pair} must end at or below encoder_layers="
                    f"{self.encoder_layers}"
                )
        if self.max_kept is not None and self.min_kept > self.max_kept:
            raise ConfigError(
                f"min_kept={self.min_kept} is larger than max_kept={self.max_kept}"
            )
        floor = self.protect_first + self.protect_last
        if self.max_kept is not None and self.max_kept < floor:
            raise ConfigError(
                f"max_kept={self.max_kept} cannot hold the protected positions "
                f"(protect_first + protect_last = {floor}); raise it or protect fewer"
            )

    @property
    def effective_saliency(self) -> str:
        """The score in use once "auto" is resolved."""
        if self.saliency != "auto":
            return self.saliency
        return "query" if self.query_visible else "entropy"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_dict` reads it back."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuickMergeConfig:
        """Build from plain JSON types.

        Raises:
            ConfigError: a name is unknown or a value impossible.
        """
        return cls(**_known(values, {f.name for f in dataclasses.fields(cls)}))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> QuickMergeConfig:
        """The defaults with a named preset on top (:data:`~qm_vllm.presets.PRESETS`), and changes.

        >>> QuickMergeConfig.preset("cache", ratio=0.4)

        Raises:
            ConfigError: no such preset, or a change is unknown or impossible.
        """
        return cls.from_dict(_preset(name, changes))

    def override(self, values: Mapping[str, Any]) -> QuickMergeConfig:
        """The configuration of one request: this one with some request fields replaced.

        ``preset`` among the values stands for the options that it names; values beside it win.
        A request that names any of :attr:`BUDGET_FIELDS` replaces the whole budget.

        Raises:
            ConfigError: a name is unknown or fixed at engine start, or a value impossible.
        """
        values = dict(values)
        if "preset" in values:
            values = _preset(values.pop("preset"), values)
        if not values:
            return self
        fields = {f.name for f in dataclasses.fields(self)}
        for name in values:
            if name in fields and name not in self.REQUEST_FIELDS:
                raise ConfigError(f"{name} is fixed when the engine starts; leave it out")
        changes = dict(_known(values, set(self.REQUEST_FIELDS)))
        if any(name in changes for name in self.BUDGET_FIELDS):
            for name in self.BUDGET_FIELDS:
                changes.setdefault(name, None)
        return dataclasses.replace(self, **changes)

    def fingerprint(self) -> str:
        """Hash of every field that can change which tokens are kept or their KV."""
        values = self.to_dict()
        for name in (
            "enabled", "min_tokens", "max_live_jobs", "max_source_tokens", "memo_bytes", "job_memory_share",
            "calibration",
        ):
            del values[name]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _preset(name: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a preset, without its budget where the changes bring one, and the changes."""
    if name not in PRESETS:
        raise ConfigError(f"preset={name!r} is unknown; allowed: {', '.join(PRESETS)}")
    budget = QuickMergeConfig.BUDGET_FIELDS
    other = any(field in changes for field in budget)
    options = {k: v for k, v in PRESETS[name].items() if not (other and k in budget)}
    return options | dict(changes)


def _known(values: Mapping[str, Any], allowed: set[str]) -> Mapping[str, Any]:
    for name in values:
        if name not in allowed:
            raise ConfigError(f"{name!r} is not an option; allowed: {', '.join(sorted(allowed))}")
    return values
