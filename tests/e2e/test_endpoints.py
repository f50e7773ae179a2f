"""Every endpoint that generates: option, report, usage, cached tokens, stream. One row each."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from qm_vllm.assets.essay import demo_document
from qm_vllm_eval.serving import soak
from qm_vllm_eval.serving.server import Server

pytestmark = pytest.mark.e2e
FLAGS = (
    *soak.FLAGS, "--served-model-name", "smol", "--num-gpu-blocks-override", "200",
    "--enable-prompt-tokens-details", "--keep-roles", "none",
)


@pytest.fixture(scope="module")
def server(tiny_chat, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with Server([str(tiny_chat), *FLAGS], log, development=True) as running:
        yield running


@dataclass(frozen=True)
class Endpoint:
    """One of vLLM's, and where its parts stand.

    Attributes:
        body: of a request with this text for so many tokens.
        prompt, cached: tokens of the prompt and those that a cache had, of an answer or of the
            last event that has a usage.
    """

    path: str
    body: Callable[[str, int], dict[str, Any]]
    prompt: Callable[[dict[str, Any]], int]
    cached: Callable[[dict[str, Any]], int]


def messages(text: str, tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": tokens}


OPENAI = (
    lambda usage: usage["prompt_tokens"],
    lambda usage: usage["prompt_tokens_details"]["cached_tokens"],
)
ENDPOINTS = {
    "completions": Endpoint(
        "/v1/completions", lambda text, n: {"prompt": text, "max_tokens": n}, *OPENAI
    ),
    "chat": Endpoint("/v1/chat/completions", messages, *OPENAI),
    "responses": Endpoint(
        "/v1/responses", lambda text, n: {"input": text, "max_output_tokens": n},
        lambda usage: usage["input_tokens"],
        lambda usage: usage["input_tokens_details"]["cached_tokens"],
    ),
    "messages": Endpoint(
        "/v1/messages", messages,
        lambda usage: usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
        + usage.get("cache_creation_input_tokens", 0),
        lambda usage: usage.get("cache_read_input_tokens", 0),
    ),
}


@pytest.fixture(params=ENDPOINTS)
def endpoint(request) -> Endpoint:
    return ENDPOINTS[request.param]


def text(number: int) -> str:
    """A document that no other test sends."""
    return f"Letter {number}. " + " ".join(demo_document().text.split()[: 500 + 7 * number])


def ask(server: Server, endpoint: Endpoint, words: str, tokens: int = 4, **more: Any) -> dict:
    return server.ask(
        endpoint.path, {"model": "smol", "temperature": 0, **endpoint.body(words, tokens), **more}
    )


def stream(
    server: Server, endpoint: Endpoint, words: str, tokens: int = 4, **more: Any
) -> list[dict]:
    """The data of all events."""
    common = {"model": "smol", "temperature": 0, "stream": True}
    body = {**common, **endpoint.body(words, tokens), **more}
    if "completions" in endpoint.path:
        body["stream_options"] = {"include_usage": True}
    request = urllib.request.Request(
        server.address + endpoint.path, json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        lines = [line[6:] for line in answer.read().split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line.strip() != b"[DONE]"]


def said(answer: dict) -> str:
    """The text of an answer."""
    if "content" in answer:
        return answer["content"][0]["text"]
    choice = answer["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def report(answer: dict) -> dict | None:
    """Of an answer or an event."""
    inner = answer.get("response") or {}
    return (answer.get("kv_transfer_params") or inner.get("kv_transfer_params") or {}).get(
        "quickmerge"
    )


def test_option_report_usage_and_cached_tokens(server, endpoint):
    server.reset_caches()
    half = ask(server, endpoint, text(1), vllm_xargs={"qm_ratio": 0.5})
    new = ask(server, endpoint, text(1))
    again = ask(server, endpoint, text(1))
    off = ask(server, endpoint, text(1), vllm_xargs={"qm_enabled": 0})
    for answer, most, cached in ((half, 0.5, False), (new, 0.4, False), (again, 0.4, True)):
        told = report(answer)
        assert told["status"] == "compressed"
        assert most - 0.1 < told["ratio"] <= most
        source = told["source_tokens"]
        assert endpoint.prompt(answer["usage"]) == source
        assert told["cached"] is cached
        assert endpoint.cached(answer["usage"]) == (source - 1 if cached else 0)
    assert report(off)["status"] == "untouched"
    assert endpoint.prompt(off["usage"]) == report(off)["source_tokens"]


def test_native_prompts_say_what_their_prefill_found(server, endpoint):
    server.reset_caches()
    native = {"vllm_xargs": {"qm_delivery": "native"}}
    words = text(2)
    answers = [
        ask(server, endpoint, words + end, **native) for end in (" One?", " Two?", " Two?")
    ]
    first, second, third = answers
    source = report(second)["source_tokens"]
    assert [report(a)["delivery"] for a in answers] == ["native"] * 3
    assert endpoint.cached(first["usage"]) == 0
    # It computes the last 64 positions again, and what else stands in their first block.
    found = endpoint.cached(second["usage"])
    assert found == report(second)["prefill_cached_tokens"]
    assert source - 64 - 32 <= found <= source - 64
    assert endpoint.cached(third["usage"]) == source - 1
    assert [endpoint.prompt(a["usage"]) for a in answers[1:]] == [source] * 2


def test_a_stream_ends_with_the_report(server, endpoint):
    server.reset_caches()
    for delivery in ("inject", "native"):
        events = stream(server, endpoint, text(3), vllm_xargs={"qm_delivery": delivery})
        told = [one for one in map(report, events) if one]
        assert len(told) == 1
        assert told[0]["status"] == "compressed"
        assert told[0]["delivery"] == delivery
        usages = [
            usage for event in events
            if (usage := event.get("usage") or (event.get("response") or {}).get("usage"))
        ]
        if "messages" not in endpoint.path:
            assert endpoint.prompt(usages[-1]) == told[0]["source_tokens"]
            assert endpoint.cached(usages[-1]) == 0


def test_an_answer_that_ends_at_a_string_has_its_report(server, endpoint):
    if endpoint.path == "/v1/responses":
        pytest.skip("it takes no stop strings")
    name = "stop_sequences" if endpoint.path == "/v1/messages" else "stop"
    for delivery in ("inject", "native"):
        options = {"vllm_xargs": {"qm_delivery": delivery}}
        free = said(ask(server, endpoint, text(4), 12, **options))
        ends = {name: [free[len(free) // 2 :][:3]]}
        answer = ask(server, endpoint, text(4), 60, **ends, **options)
        assert len(said(answer)) < len(free)
        assert report(answer)["status"] == "compressed"
        events = stream(server, endpoint, text(4), 60, **ends, **options)
        (told,) = [one for one in map(report, events) if one]
        assert told["status"] == "compressed"


@pytest.mark.parametrize(("extra", "words"), [
    ({"vllm_xargs": {"qm_ratio": 7}}, "ratio=7 must be"),
    ({"qm_ratio": 0.3}, "qm_ratio stands at the top level"),
    ({"extra_body": {"vllm_xargs": {"qm_ratio": 0.3}}}, "inside extra_body"),
    ({"vllm_xargs": {"qm_protect_ranges": "[[5, 99999]]"}}, "protect_ranges has (5, 99999)"),
])
def test_bad_options_are_400(server, endpoint, extra, words):
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(server, endpoint, text(5), **extra)
    assert error.value.code == 400
    assert words in json.load(error.value)["error"]["message"]


def test_each_prompt_of_a_list_has_its_report(server):
    completions = ENDPOINTS["completions"]
    prompts = [text(6), "Too short.", text(7)]
    body = {"model": "smol", "prompt": prompts, "max_tokens": 3, "n": 2, "temperature": 0.5}
    told = server.ask(completions.path, body)["kv_transfer_params"]
    reports = told["quickmerge_prompts"]
    assert [one["status"] for one in reports] == ["compressed", "untouched", "compressed"]
    assert reports[0]["source_tokens"] < reports[2]["source_tokens"]
    assert told["quickmerge"]["source_tokens"] == reports[0]["source_tokens"]
    events = stream(server, completions, "", **{**body, "temperature": 0.5})
    by_index = {
        event["choices"][0]["index"]: report(event) for event in events if report(event)
    }
    assert sorted(by_index) == list(range(6))
    for index, one in by_index.items():
        assert one["source_tokens"] == reports[index // 2]["source_tokens"]


def test_metrics_count_prompts_as_they_came(server):
    server.reset_caches()
    chat, before = ENDPOINTS["chat"], server.metrics()
    answers = [
        ask(server, chat, text(8), vllm_xargs={"qm_delivery": way})
        for way in ("inject", "inject", "native")
    ]
    seen = server.metrics()
    seen.subtract(before)
    source = report(answers[0])["source_tokens"]
    assert seen["vllm:external_prefix_cache_queries_total"] == 0
    assert seen["vllm:external_prefix_cache_hits_total"] == 0
    assert seen["vllm:prefix_cache_queries_total"] == 3 * source
    assert seen["vllm:prefix_cache_hits_total"] == source - 1
    assert seen["vllm:prompt_tokens_total"] == 3 * source
