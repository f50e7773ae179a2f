"""The soak's mixture of requests, and what it reads of answers."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qm_vllm_eval.serving import agent_traffic
from qm_vllm_eval.serving.ask import CHAT, Ask
from qm_vllm_eval.serving.readings import Stream, whole
from qm_vllm_eval.serving.tiny_model import TOOLS_TEMPLATE
from qm_vllm_eval.serving.traffic import Traffic

PROSE = " ".join(f"word{i}" for i in range(2000))


@pytest.fixture(scope="module")
def asks():
    traffic = Traffic("soaked", PROSE, longest=300, vocabulary=1000, seed=3)
    return [traffic.next() for _ in range(1500)]


def test_the_mixture_has_every_kind_streamed_and_not(asks):
    seen = Counter((ask.kind, bool(ask.body.get("stream"))) for ask in asks)
    kinds = {kind for kind, _ in seen}
    assert kinds == {
        "text", "ids", "chat", "tools none", "tools auto", "tools required", "tools named",
        "form of a text", "form of a chat", "responses", "messages", "bad",
    }
    assert {kind for kind, streamed in seen if streamed} == kinds - {"bad"}
    assert sum(ask.hinted for ask in asks if not ask.bad) > 50
    assert all(ask.bad == (ask.kind == "bad") for ask in asks)


def test_answers_of_a_form_end_where_the_form_ends(asks):
    for ask in asks:
        if ask.kind.startswith(("tools", "form")):
            assert "ignore_eos" not in ask.body
        assert ("max_output_tokens" in ask.body) is (ask.path == "/v1/responses")
        assert ("max_tokens" in ask.body) is (ask.path != "/v1/responses")


def test_every_other_request_of_a_crowd_has_a_form_that_never_ends():
    crowd = Traffic("soaked", PROSE, longest=300, vocabulary=1000, seed=0).crowd(70)
    assert [("structured_outputs" in ask.body, "ignore_eos" in ask.body) for ask in crowd] == [
        (False, True), (True, False),
    ] * 2
    assert all(ask.body.get("min_tokens", 128) == ask.body["max_tokens"] == 128 for ask in crowd)
    assert all(len(ask.body["prompt"]) == (70 // 4 - 2) * 32 for ask in crowd)


def test_streams_must_equal_whole_answers_unless_a_call_may_be_cut():
    def keys(**more):
        return {Ask(CHAT, {"stream": stream, **more}).key for stream in (True, False)}

    assert len(keys()) == len(keys(tool_choice="none")) == 1
    assert len(keys(tool_choice="auto")) == 2


def test_talks_of_agents_show_their_calls_and_results():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = json.dumps
    template = environment.from_string(TOOLS_TEMPLATE.read_text())
    pick, most = random.Random(0), 0
    for _ in range(20):
        messages = agent_traffic.talk(pick, lambda words: f"prose of {words} words")
        calls = [one["id"] for m in messages for one in m.get("tool_calls", ())]
        results = [m["tool_call_id"] for m in messages if m["role"] == "tool"]
        assert calls == results
        text = template.render(
            messages=messages, tools=agent_traffic.TOOLS, add_generation_prompt=True
        )
        assert text.count("\n<tool_call>\n") == text.count("<tool_response>") == len(calls)
        assert all(tool["function"]["name"] in text for tool in agent_traffic.TOOLS)
        most = max(most, len(calls))
    assert most > 2


CALL = {"index": 0, "id": "random", "function": {"name": "look_up", "arguments": '{"word":'}}
STREAMS = {
    "completions": (
        [{"choices": [{"index": 1, "text": "b"}]}, {"choices": [{"index": 0, "text": "a"}]},
         {"choices": [{"index": 1, "text": "c"}]}, {"choices": [], "usage": {}}],
        {"choices": [{"index": 1, "text": "bc"}, {"index": 0, "text": "a"}]},
        ["a", "bc"],
    ),
    "chat": (
        [{"choices": [{"index": 0, "delta": delta}]} for delta in (
            {"role": "assistant", "content": ""}, {"content": "So."}, {"tool_calls": [CALL]},
            {"tool_calls": [{"index": 0, "function": {"arguments": ' "a"}'}}]}, {},
        )],
        {"choices": [{"index": 0, "message": {"content": "So.", "tool_calls": [{
            "id": "other", "function": {"name": "look_up", "arguments": '{"word": "a"}'},
        }]}}]},
        ['So.\nlook_up({"word": "a"})'],
    ),
    "responses": (
        [{"type": "response.created", "response": {"output": [], "error": None}},
         {"type": "response.output_text.delta", "delta": "a"},
         {"type": "response.output_text.delta", "delta": "b"},
         {"type": "response.output_text.done", "text": "ab"}],
        {"output": [{"type": "message", "content": [{"type": "output_text", "text": "ab"}]}],
         "error": None},
        ["ab"],
    ),
    "messages": (
        [{"type": "message_start", "message": {"content": []}},
         {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}},
         {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "b"}},
         {"type": "message_stop"}],
        {"type": "message", "content": [{"type": "text", "text": "ab"}]},
        ["ab"],
    ),
}


@pytest.mark.parametrize("endpoint", STREAMS)
def test_a_stream_reads_as_the_whole_answer(endpoint):
    events, answer, want = STREAMS[endpoint]
    stream = Stream()
    assert [stream.add(event) for event in events] == [None] * len(events)
    assert [str(one) for one in stream.said()] == want
    assert [str(one) for one in whole(answer)] == want


@pytest.mark.parametrize("event", [
    {"error": {"message": "no"}}, {"type": "error", "message": "no"},
    {"type": "response.failed", "response": {"error": {"message": "no"}}},
])
def test_an_error_in_a_stream_is_one(event):
    assert "no" in Stream().add(event)
