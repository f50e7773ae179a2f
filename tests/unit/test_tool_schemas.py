"""Schemas of tools: found in each template's prompts, and kept whole beside the budget."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from qm_vllm.config import QuickMergeConfig
from qm_vllm.engine.requests.chat_turns import ChatTurns
from qm_vllm.engine.requests.demands import Room
from qm_vllm.engine.requests.memo import Outcome
from qm_vllm.engine.requests.planning import plan_request
from qm_vllm.engine.requests.report import compressed_report
from qm_vllm_patches.requests import Arrival
from tests.settings import facts
from tests.unit.test_tool_turns import ALL, SCHEMA, call, result, said, tokenizer_of

LONG = "A record of many words. " * 60
OTHER = {"function": {
    "parameters": {"type": "object", "properties": {"where": {"type": "string"}}},
    "description": "Finds { brackets } and [more].", "name": "find_it",
}, "type": "function"}
TALK = [
    said("system", "Help."), said("user", "The task."), call("callnoone"),
    result("callnoone", LONG), said("assistant", "Done."), said("user", "And now?"),
]
SYSTEM = [one for one in ALL if one[0] not in ("chatml", "llama3_1")]
"""Templates that show schemas in a system turn, or in one of their own."""


def prompt(name, tags, messages, tools):
    tokenizer = tokenizer_of(name, tags)
    chat = ChatTurns(tokenizer)
    text = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True)
    return tokenizer, chat, tokenizer.encode(text)


def with_schemas(name, tags, messages, tools):
    tokenizer, chat, ids = prompt(name, tags, messages, tools)
    found = chat.with_schemas(ids, chat.find(ids))
    return [(role, tokenizer.decode(ids[start:end])) for role, start, end in found]


@pytest.mark.parametrize("tools", [[SCHEMA], [OTHER], [OTHER, SCHEMA] * 3])
@pytest.mark.parametrize(("name", "tags"), SYSTEM)
def test_the_turn_with_schemas_is_found(name, tags, tools):
    ((role, text),) = with_schemas(name, tags, TALK, tools)
    assert role == "system"
    for tool in tools:
        assert tool["function"]["name"] in text


def test_llama_shows_them_in_the_first_question():
    ((role, text),) = with_schemas("llama3_1", "pieces", TALK, [SCHEMA])
    assert role == "user"
    assert "Looks things up." in text


@pytest.mark.parametrize(("name", "tags"), ALL)
def test_talks_without_tools_have_none(name, tags):
    assert with_schemas(name, tags, TALK, None) == []
    assert with_schemas(name, tags, TALK[:2], None) == []


def test_a_template_without_tools_knows_none():
    assert with_schemas("chatml", "pieces", TALK, [SCHEMA]) == []


@pytest.mark.parametrize(("name", "tags"), ALL)
def test_marks_that_are_special_without_being_named_are_marks(name, tags):
    """Tokenizers whose files name the end and the padding alone, as converted ones do."""
    tokenizer = tokenizer_of(name, tags)
    named = ChatTurns(tokenizer)
    tokenizer.added_tokens_decoder = {
        i: SimpleNamespace(special=i in tokenizer.all_special_ids)
        for i, _ in enumerate(tokenizer.names)
    }
    tokenizer.all_special_ids = tokenizer.all_special_ids[1:2]
    added = ChatTurns(tokenizer)
    assert added.marks == named.marks
    assert "user" in named.marks.values()


def plan_of(name, tags, messages, tools, **options):
    _, chat, ids = prompt(name, tags, messages, tools)
    arrival = Arrival(
        "r", len(ids), ids, {}, None, generates=True, has_embeddings=False,
        resumable=False, lora=None, prompt_logprobs=False, handle=type("H", (), {
            "skips_cache": False})(),
    )
    config = QuickMergeConfig(min_tokens=2, delivery="inject", protect_special=False, **options)
    here = facts(chat=chat)
    plan = plan_request(arrival, config, here, Room())
    turns = chat.with_schemas(ids, chat.find(ids))
    return plan, ids, turns, here


@pytest.mark.parametrize("ratio", [None, 0.25, 0.6])
@pytest.mark.parametrize(("name", "tags"), SYSTEM)
def test_they_stay_whole_and_the_ratio_is_that_of_the_rest(name, tags, ratio):
    plan, ids, turns, _ = plan_of(name, tags, TALK, [SCHEMA, OTHER] * 2, ratio=ratio)
    assert set(turns) <= set(plan.spec.turns)
    size = sum(end - start for _, start, end in turns)
    assert size > 0
    assert plan.asked == size + math.ceil((ratio or 0.4) * (len(ids) - size))
    assert not plan.crowded_out


@pytest.mark.parametrize("options", [
    {"max_kept": 70}, {"ratio": 0.3, "max_kept": 70}, {"keep_roles": "none", "ratio": 0.3},
    {"keep_roles": "last_user", "ratio": 0.3},
])
def test_whoever_says_what_stays_is_heard(options):
    plan, ids, turns, _ = plan_of("qwen2_5", "pieces", TALK, [SCHEMA, OTHER] * 2, **options)
    assert plan.asked <= options.get("max_kept", math.ceil(0.3 * len(ids)))
    assert turns[0] not in plan.spec.turns


@pytest.mark.parametrize(("name", "options", "says"), [
    ("qwen2_5", {"max_kept": 70}, "the system turn ("),
    ("llama3_1", {}, "a turn with schemas of tools ("),
    ("qwen2_5", {"keep_roles": "last_user"}, "a turn with schemas of tools ("),
])
def test_the_report_says_that_they_did_not_stay(name, options, says):
    plan, ids, _, here = plan_of(name, "pieces", TALK, [SCHEMA, OTHER] * 2, **options)
    outcome = Outcome(tuple(range(0, len(ids), 5)), {})
    report = compressed_report(
        len(ids), 0, here, plan, outcome, None, cached=False, notes=[], waited=0.0
    )
    assert any(note.startswith(says) for note in report["notes"])
