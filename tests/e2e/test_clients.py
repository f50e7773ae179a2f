"""The OpenAI and the Anthropic client against our server, as their users call them."""

from __future__ import annotations

import asyncio
import json

import anthropic
import openai
import pytest

from qm_vllm.assets.essay import demo_document
from qm_vllm_eval.serving import soak
from qm_vllm_eval.serving.clients.checks import QUARTER, streamed, told
from qm_vllm_eval.serving.server import Server

pytestmark = pytest.mark.e2e
FLAGS = (
    *soak.FLAGS, "--served-model-name", "smol", "--num-gpu-blocks-override", "200",
    "--enable-auto-tool-choice", "--tool-call-parser", "pythonic", *soak.FORM_FLAGS,
)
TEXT = " ".join(demo_document().text.split()[:700])
MESSAGES = [{"role": "user", "content": TEXT}]
TOOL = {
    "name": "look_up",
    "description": "Looks a word up.",
    "parameters": {
        "type": "object", "properties": {"word": {"type": "string", "pattern": "^[a-z]{1,6}$"}},
        "required": ["word"], "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def server(tiny_agent, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with Server([str(tiny_agent), *FLAGS], log) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


def test_openai_chat(client):
    common = {"model": "smol", "messages": MESSAGES, "max_tokens": 6, "temperature": 0}
    whole = client.chat.completions.create(**common, extra_body=QUARTER)
    report = told(whole)
    assert report["status"] == "compressed"
    assert report["ratio"] <= 0.25
    assert whole.usage.prompt_tokens == report["source_tokens"]
    parts = list(client.chat.completions.create(**common, extra_body=QUARTER, stream=True))
    assert [told(one)["kept_tokens"] for one in parts if told(one)] == [report["kept_tokens"]]
    assert told(parts[-1]), "the last event is the one with the reason"
    text = streamed(parts)
    assert text == whole.choices[0].message.content


def test_openai_async_chats_at_once(server):
    async def all_at_once():
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none") as own:
            async def ask(number: int):
                stream = await own.chat.completions.create(
                    model="smol", max_tokens=5, stream=True,
                    messages=[{"role": "user", "content": f"{number} {TEXT}"}],
                    extra_body={"vllm_xargs": {"qm_ratio": number / 10}},
                )
                return [told(one) async for one in stream if told(one)]

            return await asyncio.gather(*map(ask, (1, 3, 5, 7)))

    ratios = [reports[0]["ratio"] for reports in asyncio.run(all_at_once())]
    assert all(seen <= want for seen, want in zip(ratios, (0.1, 0.3, 0.5, 0.7), strict=True))
    assert ratios == sorted(ratios)


def test_openai_completions_and_responses(client):
    listed = client.completions.create(
        model="smol", prompt=[TEXT, TEXT + " More."], max_tokens=3, extra_body=QUARTER,
    )
    reports = listed.model_extra["kv_transfer_params"]["quickmerge_prompts"]
    assert [one["status"] for one in reports] == ["compressed"] * 2
    common = {"model": "smol", "input": TEXT, "instructions": "Be short.", "max_output_tokens": 4}
    whole = client.responses.create(**common, extra_body=QUARTER)
    assert told(whole)["ratio"] <= 0.25
    last = list(client.responses.create(**common, extra_body=QUARTER, stream=True))[-1]
    assert told(last.response)["source_tokens"] == told(whole)["source_tokens"]


def test_openai_tools_and_schemas(client):
    common = {"model": "smol", "messages": MESSAGES, "max_tokens": 60, "temperature": 0}
    chosen = client.chat.completions.create(
        **common, tools=[{"type": "function", "function": TOOL}],
        tool_choice={"type": "function", "function": {"name": "look_up"}},
    )
    (call,) = chosen.choices[0].message.tool_calls
    assert call.function.name == "look_up"
    assert set(json.loads(call.function.arguments)) == {"word"}
    assert told(chosen)["status"] == "compressed"
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": TOOL["parameters"]}}
    parts = list(client.chat.completions.create(**common, response_format=form, stream=True))
    text = streamed(parts)
    assert set(json.loads(text)) == {"word"}
    assert [told(one)["status"] for one in parts if told(one)] == ["compressed"]
    # What is asked stands in the schema alone, so the names of its fields look.
    assert [told(one)["hint_tokens"] for one in parts if told(one)] == [1]
    assert told(chosen)["hint_tokens"] == 1
    blind = client.chat.completions.create(
        **common, response_format=form, extra_body={"vllm_xargs": {"qm_hint": ""}},
    )
    assert "hint_tokens" not in told(blind)


def test_a_tools_result_is_not_the_persons_last_turn(client, server):
    task = "Look the letter up and say in one line who wrote it."
    call = {"id": "call_1", "type": "function", "function": {
        "name": "look_up", "arguments": json.dumps({"word": "letter"}),
    }}
    talk = {
        "model": "smol", "tools": [{"type": "function", "function": TOOL}], "messages": [
            {"role": "user", "content": task},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1",
             "content": " ".join(demo_document().text.split()[:1100])},
        ],
    }
    report = told(client.chat.completions.create(**talk, max_tokens=4, temperature=0))
    assert report["status"] == "compressed"
    ids = server.ask("/tokenize", talk)["tokens"]
    assert len(ids) == report["source_tokens"]
    turns = [
        (role, server.ask("/detokenize", {"model": "smol", "tokens": ids[start:stop]})["prompt"])
        for role, start, stop in report["kept_turns"]
    ]
    assert [role for role, _ in turns] == ["system", "user"]
    assert TOOL["description"] in turns[0][1]
    assert task in turns[1][1]
    assert "tool_response" not in turns[1][1]


@pytest.mark.parametrize(("extra", "words"), [
    ({"qm_ratio": 0.3}, "qm_ratio stands at the top level"),
    ({"vllm_xargs": {"qm_ratio": 3}}, "ratio=3 must be"),
])
def test_clients_raise_what_the_server_refuses(client, server, extra, words):
    with pytest.raises(openai.BadRequestError, match=words):
        client.chat.completions.create(model="smol", messages=MESSAGES, extra_body=extra)
    own = anthropic.Anthropic(base_url=server.address, api_key="none", max_retries=0)
    with pytest.raises(anthropic.BadRequestError, match=words):
        own.messages.create(model="smol", max_tokens=4, messages=MESSAGES, extra_body=extra)


def test_anthropic_messages(server):
    own = anthropic.Anthropic(base_url=server.address, api_key="none", max_retries=0)
    common = {"model": "smol", "max_tokens": 6, "system": "Be short.", "messages": MESSAGES}
    whole = own.messages.create(**common, extra_body=QUARTER)
    report = told(whole)
    assert report["ratio"] <= 0.25
    with own.messages.create(**common, extra_body=QUARTER, stream=True) as events:
        reports = [told(event) for event in events if told(event)]
    assert [one["kept_tokens"] for one in reports] == [report["kept_tokens"]]
