"""Validation and serialisation of the configuration."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from qm_vllm import config as configuration
from qm_vllm.config import ConfigError, QuickMergeConfig
from qm_vllm.request_options import parse_request_args, request_args

NUMBERS = (
    "ratio", "alpha", "head_share", "layer_share", "logit_scale", "epsilon",
    "job_memory_share",
)
COUNTS = {
    "min_tokens": 2, "max_kept": 1, "min_kept": 1, "protect_first": 0, "protect_last": 1,
    "encoder_layers": 1, "encoder_chunk_tokens": 16, "max_live_jobs": 1,
    "memo_bytes": 0,
}


def refused(**values):
    with pytest.raises(ConfigError) as caught:
        QuickMergeConfig(**values)
    return str(caught.value)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1e9, "0.5", True, [1]])
def test_numbers_name_field_value_and_range(name, value):
    message = refused(**{name: value})
    assert message.startswith(f"{name}={value!r} must be ")
    assert "at most" in message


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("ratio", 0, "greater than 0 and at most 1"), ("ratio", 1.01, "at most 1"),
     ("alpha", 1.01, "at least 0 and at most 1"), ("logit_scale", 0.0, "greater than 0"),
     ("job_memory_share", 0, "greater than 0 and at most 0.5"), ("epsilon", 2, "at most 1")],
)
def test_ends_of_ranges(name, value, words):
    assert words in refused(**{name: value})


@pytest.mark.parametrize(("name", "low"), COUNTS.items())
def test_counts(name, low):
    for value in (low - 1, low + 0.5, math.nan, "8", True):
        assert refused(**{name: value}) == f"{name}={value!r} must be a whole number >= {low}"
    if name != "max_kept":
        assert getattr(QuickMergeConfig(**{name: float(low)}), name) == low


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("saliency", configuration.SALIENCIES), ("grouping", configuration.GROUPINGS),
     ("merge", configuration.MERGES), ("delivery", configuration.DELIVERIES)],
)
def test_names(name, allowed):
    assert refused(**{name: "nope"}) == (
        f"{name}='nope' is unknown; allowed: {', '.join(allowed)}"
    )
    for value in allowed:
        assert getattr(QuickMergeConfig(**{name: value}), name) == value


@pytest.mark.parametrize("name", ["enabled", "protect_special", "query_visible"])
def test_flags(name):
    for value, meaning in ((1, True), (0, False), ("true", True), ("False", False)):
        assert getattr(QuickMergeConfig(**{name: value}), name) is meaning
    assert refused(**{name: "perhaps"}) == f"{name}='perhaps' must be true or false"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"protect_ranges": ((3, 3),)}, "protect_ranges has (3, 3)"),
        ({"protect_ranges": ((-1, 3),)}, "0 <= start < stop"),
        ({"protect_ranges": (3,)}, "(start, stop) pairs"),
        ({"protect_ranges": "ab"}, "protect_ranges='ab'"),
        ({"score_layers": (5, 2)}, "score_layers has (5, 2)"),
        ({"score_layers": (5, 12), "encoder_layers": 10}, "encoder_layers=10"),
        ({"max_kept": 100, "min_kept": 101}, "min_kept=101 is larger than max_kept=100"),
        ({"max_kept": 35}, "protect_first + protect_last = 36"),
    ],
)
def test_fields_that_contradict_each_other(values, words):
    assert words in refused(**values)


def test_unknown_names():
    with pytest.raises(ConfigError, match=r"'ration' is not an option; allowed: .*ratio"):
        QuickMergeConfig.from_dict({"ration": 0.5})
    with pytest.raises(ConfigError, match="'ration' is not an option"):
        QuickMergeConfig().override({"ration": 0.5})
    with pytest.raises(ConfigError, match="memo_bytes is fixed when the engine starts"):
        QuickMergeConfig().override({"memo_bytes": 5})


def test_json_round_trip():
    config = QuickMergeConfig(
        ratio=0.3, protect_ranges=[[1, 5], [7, 9]], score_layers=[5, 10], saliency="ned"
    )
    again = QuickMergeConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.fingerprint() == config.fingerprint()
    assert again.protect_ranges == ((1, 5), (7, 9))


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuickMergeConfig().ratio = 0.5


def test_override_replaces_the_whole_budget():
    base = QuickMergeConfig(ratio=0.3, max_kept=500, saliency="norm")
    changed = base.override({"alpha": 0.45})
    assert (changed.ratio, changed.max_kept, changed.alpha) == (None, None, 0.45)
    assert changed.saliency == "norm"
    kept = base.override({"merge": "mean"})
    assert (kept.ratio, kept.max_kept) == (0.3, 500)
    assert base.override({}) is base
    with pytest.raises(ConfigError, match="ratio=2 must be"):
        base.override({"ratio": 2})


def test_presets_stand_under_what_is_said_beside_them():
    preset = QuickMergeConfig.preset("cache")
    assert preset == QuickMergeConfig(delivery="native")
    assert QuickMergeConfig.preset("cache", max_kept=300).ratio is None
    assert QuickMergeConfig(delivery="inject").override({"preset": "cache"}) == preset
    assert QuickMergeConfig.preset("cache", delivery="auto") == QuickMergeConfig()
    assert QuickMergeConfig().override({"preset": "cache", "ratio": 0.3}).ratio == 0.3
    assert parse_request_args(request_args(preset="cache")) == {"preset": "cache"}
    for use in (QuickMergeConfig.preset, lambda name: request_args(preset=name)):
        with pytest.raises(ConfigError, match=r"preset='best' is unknown; allowed: cache"):
            use("best")


def test_a_hint_is_a_short_text_and_an_empty_one_is_none():
    assert QuickMergeConfig(hint="Who?").hint == "Who?"
    assert QuickMergeConfig(hint="").hint == ""
    base = QuickMergeConfig(hint="Who?")
    assert base.override({"hint": ""}).hint == ""
    assert base.override({"ratio": 0.3}).hint == "Who?"
    assert base.fingerprint() != QuickMergeConfig().fingerprint()
    assert request_args(hint="Who?") == {"qm_hint": "Who?"}
    assert "hint has 1,025 characters; at most 1,024 are allowed" in refused(hint="x" * 1025)
    assert refused(hint=7) == "hint=7 must be a text"


@pytest.mark.parametrize("saliency", ["leverage", "entropy", "norm", "ned"])
def test_a_hint_needs_a_score_that_looks(saliency):
    assert refused(hint="Who?", saliency=saliency).startswith("hint needs saliency='query'")
    assert QuickMergeConfig(hint="", saliency=saliency).hint == ""


def test_effective_saliency():
    assert QuickMergeConfig(query_visible=False, hint="Who?").effective_saliency == "query"
    assert QuickMergeConfig().effective_saliency == "query"
    assert QuickMergeConfig(query_visible=False).effective_saliency == "entropy"
    native = QuickMergeConfig(query_visible=False, delivery="native")
    assert native.effective_saliency == "leverage"
    assert native.override({"hint": "Who?"}).effective_saliency == "query"
    assert native.override({"query_visible": True}).effective_saliency == "query"
    assert QuickMergeConfig(saliency="ned").effective_saliency == "ned"


def test_fingerprint_changes_with_what_is_kept_only():
    base = QuickMergeConfig()
    for name in ("enabled", "min_tokens", "max_live_jobs", "memo_bytes", "job_memory_share",
                 "strict_version"):
        value = {"enabled": False, "job_memory_share": 0.1, "strict_version": True}.get(name, 77)
        assert QuickMergeConfig(**{name: value}).fingerprint() == base.fingerprint()
    for values in ({"ratio": 0.3}, {"merge": "mean"}, {"epsilon": 0.5}, {"positions": "compact"}):
        assert QuickMergeConfig(**values).fingerprint() != base.fingerprint()


def test_request_args_round_trip():
    values = {"ratio": 0.3, "protect_ranges": ((1, 5), (7, 9)), "score_layers": (5, 10),
              "saliency": "norm", "enabled": True}
    carried = json.loads(json.dumps(request_args(**values)))
    assert all(isinstance(v, (bool, int, float, str)) for v in carried.values())
    changed = QuickMergeConfig().override(parse_request_args(carried))
    for name, value in values.items():
        assert getattr(changed, name) == value


def test_request_args_are_checked():
    with pytest.raises(ConfigError, match="ratio=0 must be"):
        request_args(ratio=0)
    with pytest.raises(ConfigError, match="fixed when the engine starts"):
        request_args(max_live_jobs=1)
    with pytest.raises(ConfigError, match="qm_protect_ranges='x' is not a JSON list"):
        parse_request_args({"qm_protect_ranges": "x"})


def test_parse_request_args_reads_both_places():
    assert parse_request_args(None) == {}
    assert parse_request_args({"other": 1, "kv_transfer_params": None}) == {}
    got = parse_request_args(
        {"qm_ratio": 0.5, "kv_transfer_params": {"quickmerge": {"ratio": 0.1, "merge": "mean"}}}
    )
    assert got == {"ratio": 0.5, "merge": "mean"}


def test_who_may_set_what():
    everyday = {
        "enabled", "ratio", "max_kept", "min_kept", "min_tokens", "protect_first", "protect_last",
        "protect_special", "protect_ranges", "keep_roles", "query_visible", "alpha", "max_error",
        "delivery", "hint",
    }
    research = {
        "saliency", "grouping", "merge", "epsilon", "encoder_layers", "window_layers",
        "score_layers", "head_share", "logit_scale", "positions", "details",
    }
    assert research == QuickMergeConfig.RESEARCH_FIELDS
    assert everyday | research == QuickMergeConfig.REQUEST_FIELDS
    engine = set(configuration.OPTIONS) - QuickMergeConfig.REQUEST_FIELDS
    assert {"calibration", "job_memory_share", "allow_options"} < engine
    for name in engine:
        with pytest.raises(ConfigError, match="fixed when the engine starts"):
            QuickMergeConfig().override({name: QuickMergeConfig().to_dict()[name]})


def test_a_server_allows_research_options_only():
    assert QuickMergeConfig(allow_options="details, saliency").allow_options == (
        "details", "saliency",
    )
    assert QuickMergeConfig(allow_options=["all"]).allow_options == ("all",)
    assert QuickMergeConfig(allow_options="none").allow_options == ()
    for value in ("ratio", "colour", 3):
        words = refused(allow_options=value)
        assert words.startswith(f"allow_options={value!r} is unknown; allowed: none, or some of")


@pytest.mark.parametrize("name", configuration.OPTIONS)
def test_every_default_survives_its_own_check_json_and_text(name):
    one, default = configuration.OPTIONS[name], getattr(QuickMergeConfig(), name)
    assert one.checked(default) == default
    assert one.help
    assert not one.help.endswith(".")
    carried = json.loads(json.dumps(one.as_text(default)))
    assert not isinstance(carried, (list, dict))
    assert one.checked(one.from_text(name, carried)) == default
