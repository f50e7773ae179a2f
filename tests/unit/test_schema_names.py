"""The hint of a request that has none but a JSON schema: the names of its fields."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.requests.hints import Hints
from qm_vllm.engine.requests.planning import plan_or_reason
from qm_vllm.engine.requests.schema_names import field_names
from qm_vllm.option_checks import MOST_HINT
from tests.unit.test_scheduler_side import Engine


class Letters:
    """A tokenizer whose tokens are characters."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(one) % 1000 for one in text]


TEXT = {"type": "string"}
ORDER = {"type": "object", "properties": {
    "number": TEXT,
    "goods": {"type": "object", "properties": {"kind": TEXT, "pieces": {"type": "integer"}}},
}}
NESTED = {"type": "object", "properties": {"company": {"properties": {
    "seat": {"properties": {"town": TEXT, "code": TEXT}}, "name": TEXT,
}}, "order": ORDER}}
LOOP = {"$ref": "#/$defs/Part", "$defs": {"Part": {"properties": {
    "name": TEXT, "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}},
}}}}


@pytest.mark.parametrize(("schema", "names"), [
    (ORDER, "number, goods kind, pieces"),
    (json.dumps(ORDER), "number, goods kind, pieces"),
    (NESTED, "company seat town, code, name, order number, goods kind, pieces"),
    ({"type": "array", "items": ORDER}, "number, goods kind, pieces"),
    ({"anyOf": [ORDER, {"type": "null"}, {"properties": {"none": TEXT}}]},
     "number, goods kind, pieces, none"),
    ({"$defs": {"Order": ORDER}, "properties": {"order": {"$ref": "#/$defs/Order"}}},
     "order number, goods kind, pieces"),
    ({"additionalProperties": ORDER}, "number, goods kind, pieces"),
    ({"properties": {"far": {"$ref": "https://example.org/far.json"}}}, "far"),
    ({"properties": {"lost": {"$ref": "#/$defs/Nobody"}}}, "lost"),
    ({"$ref": "#"}, ""), ({"$ref": "#/a", "a": {"$ref": "#/a"}}, ""),
    (TEXT, ""), (True, ""), ([], ""), ("{", ""), ("[" * 100_000, ""),
    ({"properties": 7, "items": "x", "anyOf": {}}, ""),
])
def test_fields_are_named_in_their_order_with_what_holds_them(schema, names):
    assert field_names(schema) == names


def test_a_schema_that_holds_itself_ends():
    names = field_names(LOOP)
    assert names.startswith("name, parts name, parts name")
    assert len(names) <= MOST_HINT


@pytest.mark.parametrize("key", ["anyOf", "oneOf", "allOf", "prefixItems"])
def test_a_schema_that_holds_itself_many_times_and_names_nothing_ends(key):
    again = {"$ref": "#/$defs/Part"}
    assert field_names({**again, "$defs": {"Part": {key: [again] * 10}}}) == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["properties", "items", "anyOf", "$ref", "a", "additionalProperties"]),
        inner, max_size=4,
    ),
)


@given(JSON)
def test_nothing_that_a_client_sends_breaks_it(schema):
    assert len(field_names(json.dumps(schema))) <= MOST_HINT


def planned(config: QuickMergeConfig, schema=ORDER, **facts):
    engine = Engine(config, hints=Hints(Letters()), **facts)
    engine.side.bind_shadows(object())
    engine.add("r")
    arrival = replace(engine.side.tracked["r"].arrival, schema=schema)
    return plan_or_reason(arrival, config, engine.side.facts, engine.side.room)


def hint_of(config: QuickMergeConfig, **changes) -> tuple[int, ...]:
    return planned(config, **changes).spec.hint


NAMES = tuple(Letters().encode("number, goods kind, pieces"))


@pytest.mark.parametrize("delivery", ["inject", "native", "prefill"])
def test_the_names_are_the_hint_in_every_delivery(delivery):
    assert hint_of(QuickMergeConfig(ratio=0.4, delivery=delivery)) == NAMES


@pytest.mark.parametrize("changes", [
    {"hint": ""}, {"query_visible": False}, {"saliency": "entropy"}, {"saliency": "norm"},
])
def test_they_are_none_where_it_is_switched_off_or_nothing_looks(changes):
    assert hint_of(QuickMergeConfig(ratio=0.4, delivery="inject", **changes)) == ()


def test_a_hint_that_was_given_comes_first():
    told = tuple(Letters().encode("Who?"))
    assert hint_of(QuickMergeConfig(ratio=0.4, delivery="inject", hint="Who?")) == told


def test_without_schema_or_tokenizer_there_is_none():
    config = QuickMergeConfig(ratio=0.4, delivery="inject")
    assert hint_of(config, schema=None) == hint_of(config, schema=TEXT) == ()
    engine = Engine(config)
    engine.add("r")
    arrival = replace(engine.side.tracked["r"].arrival, schema=ORDER)
    assert plan_or_reason(arrival, config, engine.side.facts, engine.side.room).spec.hint == ()


def test_a_model_without_layers_of_ours_is_scored_as_before():
    plan = planned(
        QuickMergeConfig(ratio=0.4, delivery="prefill"), has_adapter=False, no_inject="no adapter"
    )
    assert plan.spec.hint == ()


def test_no_prompt_is_too_long_with_a_hint_that_nobody_gave():
    config = QuickMergeConfig(ratio=0.4, delivery="native")
    whole = planned(config).spec
    tight = planned(config, max_model_len=len(whole.token_ids) + 3).spec
    assert whole.hint
    assert tight.hint == ()
    named = planned(replace(config, hint="Who is it?"), max_model_len=len(whole.token_ids) + 3)
    assert named.kind == "too_long"
