"""The server's middleware, driven as an ASGI server drives it."""

from __future__ import annotations

import asyncio
import json

import pytest

from qm_vllm.calibration import Calibration, ModelShape
from qm_vllm.config import QuickMergeConfig
from qm_vllm.http_options import RefuseBadOptions
from tests.unit.fake_server import MODEL, application


def ask(
    body: bytes, *, method: str = "POST", parts: int = 1, kind: str = "http",
    config: QuickMergeConfig | None = None,
):
    """Status and JSON of the answer, and the body that the application saw."""
    seen, sent = [], []
    size = -(-len(body) // parts) or 1
    pieces = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
    queue = [
        {"type": "http.request", "body": piece, "more_body": i < len(pieces) - 1}
        for i, piece in enumerate(pieces)
    ]

    async def receive():
        return queue.pop(0) if queue else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            seen.append(message["body"])
            if not message["more_body"]:
                return

    scope = {"type": kind, "method": method, "app": application(config)}
    asyncio.run(RefuseBadOptions(app)(scope, receive, send))
    status = sent[0]["status"] if sent else None
    return status, json.loads(sent[1]["body"]) if sent else None, b"".join(seen)


def body(**content) -> bytes:
    return json.dumps({"model": "m", **content}).encode()


@pytest.mark.parametrize(("content", "words"), [
    ({"vllm_xargs": {"qm_ratio": 7}}, "ratio=7 must be greater than 0 and at most 1"),
    ({"vllm_xargs": {"qm_colour": 1}}, "'colour' is not an option"),
    ({"vllm_xargs": {"qm_max_live_jobs": 9}}, "max_live_jobs is fixed when the engine starts"),
    ({"vllm_xargs": {"qm_protect_ranges": "[[5, 2]]"}}, "protect_ranges has (5, 2)"),
    ({"vllm_xargs": {"qm_protect_ranges": "[[-5, 2]]"}}, "protect_ranges has (-5, 2)"),
    ({"vllm_xargs": {"qm_protect_ranges": "{"}}, "is not a JSON list"),
    ({"kv_transfer_params": {"quickmerge": {"alpha": "x"}}}, "alpha='x' must be a number"),
    ({"vllm_xargs": {"qm_preset": "best"}}, "preset='best' is unknown; allowed: cache"),
    ({"vllm_xargs": {"qm_hint": "why " * 257}}, "hint has 1,028 characters; at most 1,024"),
    ({"vllm_xargs": {"qm_hint": 3}}, "hint=3 must be a text"),
])
@pytest.mark.parametrize("parts", [1, 3])
def test_bad_options_are_refused_with_the_field(content, words, parts):
    status, answer, seen = ask(body(**content), parts=parts)
    assert status == 400
    assert words in answer["error"]["message"]
    assert answer["error"]["code"] == 400
    assert seen == b""


@pytest.mark.parametrize(("content", "where", "words"), [
    ({"qm_ratio": 0.3}, "qm_ratio stands at the top level", '"vllm_xargs": {"qm_ratio": ...}'),
    ({"quickmerge": {"ratio": 0.3}}, "quickmerge stands at the top level", "kv_transfer_params"),
    ({"extra_body": {"qm_ratio": 0.3}}, "qm_ratio stands inside extra_body", "at the top level"),
    ({"extra_body": {"vllm_xargs": {"qm_ratio": 0.3}}}, "inside extra_body", "extra_body="),
    ({"chat_template_kwargs": {"qm_enabled": 0}}, "inside chat_template_kwargs", "vllm_xargs"),
    ({"qm_" + "x" * 100_000: 1, "vllm_xargs": {"qm_ratio": 0.3}}, "at the top level", "qm_xxx"),
])
def test_options_in_the_wrong_place_are_not_passed_over(content, where, words):
    status, answer, seen = ask(body(**content))
    assert (status, seen) == (400, b"")
    said = answer["error"]["message"]
    assert where in said
    assert words in said
    assert len(said) < 700


@pytest.mark.parametrize("content", [
    {}, {"vllm_xargs": {"qm_ratio": 0.3, "other": "x"}}, {"vllm_xargs": None},
    {"vllm_xargs": {"qm_preset": "cache"}}, {"prompt": "say qm_ratio and quickmerge"},
    {"kv_transfer_params": {"quickmerge": {"ratio": 0.5}}}, {"vllm_xargs": "qm_ratio"},
])
@pytest.mark.parametrize("parts", [1, 4])
def test_everything_else_arrives_byte_for_byte(content, parts):
    status, _, seen = ask(body(**content), parts=parts)
    assert status is None
    assert seen == body(**content)


@pytest.mark.parametrize("raw", [b"", b"{qm_", b"[\"qm_\"]", b"\xff qm_"])
def test_what_is_no_json_object_is_left_to_the_server(raw):
    assert ask(raw)[0] is None
    assert ask(raw)[2] == raw


def test_other_methods_and_kinds_pass():
    bad = body(vllm_xargs={"qm_ratio": 7})
    assert ask(bad, method="GET")[0] is None
    assert ask(bad, kind="websocket")[0] is None


def test_the_servers_own_configuration_counts():
    config = QuickMergeConfig(protect_last=200)
    status, answer, _ = ask(body(vllm_xargs={"qm_max_kept": 100}), config=config)
    assert status == 400
    assert "max_kept=100 cannot hold the protected positions" in answer["error"]["message"]


@pytest.mark.parametrize("name", sorted(QuickMergeConfig.RESEARCH_FIELDS))
def test_research_options_are_refused_unless_the_operator_allows_them(name):
    value = getattr(QuickMergeConfig(encoder_layers=8, window_layers=2, score_layers=(2, 4)), name)
    content = body(kv_transfer_params={"quickmerge": {name: value}})
    other = next(iter(QuickMergeConfig.RESEARCH_FIELDS - {name}))
    for config in (None, QuickMergeConfig(), QuickMergeConfig(allow_options=(other,))):
        status, answer, seen = ask(content, config=config)
        assert (status, seen) == (400, b"")
        said = answer["error"]["message"]
        assert f"{name} is a research option" in said
        assert f"allow it with --allow-options {name}" in said
    for allowed in (name, "all", f"{other},{name}"):
        status, _, seen = ask(content, config=QuickMergeConfig(allow_options=allowed))
        assert (status, seen) == (None, content)


@pytest.mark.parametrize("raw", [
    rb'{"vllm_xargs": {"\u0071m_details": true}}',
    rb'{"kv_transfer_params": {"quick\u006derge": {"details": true}}}',
    json.dumps({"vllm_xargs": {"qm_details": True}}).encode("utf-16"),
    body(sampling_params={"extra_args": {"qm_details": True}}),
    body(sampling_params={"extra_args": {"kv_transfer_params": {"quickmerge": {"details": 1}}}},
         vllm_xargs={"kv_transfer_params": {}}),
])
def test_no_other_way_to_write_an_option_passes(raw):
    status, answer, _ = ask(raw)
    assert status == 400
    assert "details is a research option" in answer["error"]["message"]


@pytest.mark.parametrize(("given", "words"), [
    ({"encoder_layers": 999}, "encoder_layers=999 is more than the model's 12 layers"),
    ({"window_layers": 9}, "window_layers=9 is more than encoder_layers=8"),
    ({"window_layers": 3, "encoder_layers": 2}, "window_layers=3 is more than encoder_layers=2"),
    ({"score_layers": [5, 10]}, "score_layers=(5, 10) must end at or below encoder_layers=8"),
    ({"encoder_layers": 12, "window_layers": 12, "score_layers": [0, 12]}, None),
    ({"encoder_layers": 1}, None),  # the engine's window shrinks with it
    ({"ratio": 0.3}, None),
])
def test_layers_are_checked_against_the_model(given, words):
    config = QuickMergeConfig(allow_options=("all",), window_layers=2)
    status, answer, _ = ask(body(kv_transfer_params={"quickmerge": given}), config=config)
    if words is None:
        assert status is None
    else:
        assert status == 400
        assert words in answer["error"]["message"]


def test_layers_of_a_calibrated_model_count(tmp_path):
    file = tmp_path / "m.json"
    Calibration("m", ModelShape.of(MODEL), 5, 3, {}).save(file)
    config = QuickMergeConfig(allow_options="all", calibration=str(file))
    content = body(kv_transfer_params={"quickmerge": {"score_layers": [2, 6]}})
    status, answer, _ = ask(content, config=config)
    assert status == 400
    assert "score_layers=(2, 6) must end at or below encoder_layers=5" in answer["error"]["message"]
    file.unlink()  # where only the engine's machine has it, the depth is not known here
    assert ask(content, config=config)[0] is None


def test_the_engine_is_read_once_it_is_there():
    middleware = RefuseBadOptions(None)
    assert not middleware._rules_of({}).base.allow_options
    app = application(QuickMergeConfig(allow_options="all"))
    assert middleware._rules_of({"app": app}).allows("details")
    assert middleware._rules_of({}).allows("details")


def test_too_many_ranges_are_refused():
    ranges = json.dumps([[i, i + 1] for i in range(100_000)])
    status, answer, _ = ask(body(vllm_xargs={"qm_protect_ranges": ranges}))
    assert status == 400
    assert "characters; at most 65536 are allowed" in answer["error"]["message"]
    listed = {"protect_ranges": json.loads(ranges)}
    status, answer, _ = ask(body(kv_transfer_params={"quickmerge": listed}))
    assert status == 400
    assert "protect_ranges has 100000 ranges; at most 1000" in answer["error"]["message"]


def ask_server(content: dict, *, tokenize_status: int = 200, path: str = "/v1/completions"):
    """Status and message for a request to a server that counts words as tokens."""
    asked, sent = [], []

    async def app(scope, receive, send):
        message = await receive()
        asked.append((scope["path"], json.loads(message["body"])))
        if scope["path"] not in ("/tokenize", "/v1/messages/count_tokens"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})
            return
        inner = asked[-1][1]
        text = inner.get("prompt") or " ".join(m["content"] for m in inner["messages"])
        count = len(f"{inner.get('system', '')} {text}".split())
        answer = json.dumps({"count": count, "input_tokens": count}).encode()
        await send({"type": "http.response.start", "status": tokenize_status, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    pieces = [{"type": "http.request", "body": body(**content), "more_body": False}]

    async def receive():
        return pieces.pop(0)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": path,
        "headers": [(b"authorization", b"Bearer x"), (b"content-length", b"1")],
    }
    asyncio.run(RefuseBadOptions(app)(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"]), asked


@pytest.mark.parametrize("content", [
    {"prompt": "one two three"},
    {"prompt": ["one two three four", "one two three"]},
    {"prompt": [7, 8, 9]},
    {"prompt": [[7, 8, 9, 10], [7, 8, 9]]},
    {"messages": [{"role": "user", "content": "one two three"}], "temperature": 1},
])
def test_ranges_outside_the_prompt_are_refused(content):
    inside, outside = ({"qm_protect_ranges": f"[[1, {stop}]]"} for stop in (3, 4))
    status, answer, asked = ask_server(content | {"vllm_xargs": outside})
    assert status == 400
    assert "protect_ranges has (1, 4), but the prompt has 3 tokens" in answer["error"]["message"]
    assert all(path == "/tokenize" for path, _ in asked)
    assert all("temperature" not in inner and "vllm_xargs" not in inner for _, inner in asked)
    status, _, asked = ask_server(content | {"vllm_xargs": inside})
    assert status == 200
    assert asked[-1] == ("/v1/completions", json.loads(body(**content, vllm_xargs=inside)))


@pytest.mark.parametrize("content", [
    {"prompt": "one two three"}, {"prompt": [7, 8, 9]}, {"prompt": [[7, 8, 9], [7, 8, 9, 10]]},
    {"messages": [{"role": "user", "content": "one two three"}]},
])
@pytest.mark.parametrize("tokenize_status", [200, 400])
def test_ranges_are_measured_in_the_prompt_as_vllm_cuts_it(content, tokenize_status):
    inside, outside = ({"qm_protect_ranges": f"[[1, {stop}]]"} for stop in (2, 3))
    cut = content | {"truncate_prompt_tokens": 2}
    status, answer, _ = ask_server(
        cut | {"vllm_xargs": outside}, tokenize_status=tokenize_status
    )
    assert status == 400
    assert answer["error"]["message"].endswith(
        "protect_ranges has (1, 3), but truncate_prompt_tokens cuts the prompt to 2 tokens"
    )
    assert ask_server(cut | {"vllm_xargs": inside}, tokenize_status=tokenize_status)[0] == 200


@pytest.mark.parametrize(("path", "cut"), [
    ("/v1/completions", -1), ("/v1/completions", None), ("/v1/completions", 9),
    ("/v1/responses", 2),  # which has no such field
])
def test_a_prompt_that_is_not_cut_is_measured_as_it_is(path, cut):
    words = "one two three"
    given = {"input": words} if path == "/v1/responses" else {"prompt": words}
    content = given | {"truncate_prompt_tokens": cut}
    inside, outside = ({"qm_protect_ranges": f"[[1, {stop}]]"} for stop in (3, 4))
    status, answer, _ = ask_server(content | {"vllm_xargs": outside}, path=path)
    assert status == 400
    assert "but the prompt has 3 tokens" in answer["error"]["message"]
    assert ask_server(content | {"vllm_xargs": inside}, path=path)[0] == 200


@pytest.mark.parametrize(("path", "content"), [
    ("/v1/responses", {"input": "two three", "instructions": "one"}),
    ("/v1/responses", {"input": [{"role": "user", "content": "one two three"}, {"type": "x"}]}),
    ("/v1/messages", {"system": "one", "messages": [{"role": "user", "content": "two three"}]}),
])
def test_ranges_are_measured_at_every_endpoint(path, content):
    inside, outside = ({"qm_protect_ranges": f"[[1, {stop}]]"} for stop in (3, 4))
    status, answer, _ = ask_server(content | {"vllm_xargs": outside}, path=path)
    assert status == 400
    assert "but the prompt has 3 tokens" in answer["error"]["message"]
    assert answer.get("type") == ("error" if path == "/v1/messages" else None)
    status, _, asked = ask_server(content | {"vllm_xargs": inside}, path=path)
    assert status == 200
    assert asked[-1][0] == path


def test_a_server_that_does_not_count_is_not_asked_to_refuse():
    options = {"qm_protect_ranges": "[[1, 99]]"}
    status, _, _ = ask_server({"prompt": "one", "vllm_xargs": options}, tokenize_status=404)
    assert status == 200


def test_huge_values_are_refused_in_few_words():
    deep = "[" * 60_000
    for extra in (
        {"qm_saliency": "x" * 10_000_000}, {"qm_" + "x" * 1_000_000: 1}, {"qm_min_kept": 1e300},
        {"qm_protect_ranges": deep},
    ):
        status, answer, _ = ask(body(vllm_xargs=extra))
        assert status == 400
        assert len(answer["error"]["message"]) < 700
    status, _, seen = ask(b'{"vllm_xargs": ' + deep.encode() + b'"qm_"')
    assert status is None  # not JSON: vLLM's own business
    assert seen.endswith(b'"qm_"')
