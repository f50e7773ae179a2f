"""Reports in what a server sends, driven as an ASGI server drives it."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from qm_vllm.http_reports import AddReports
from qm_vllm_patches import frontend

FIRST, SECOND = {"status": "compressed", "kept_tokens": 5}, {"status": "untouched"}


def state(external_id: str, report: dict | None) -> SimpleNamespace:
    """A request in the engine's frontend."""
    found = SimpleNamespace(external_req_id=external_id)
    if report is not None:
        setattr(found, frontend.REPORT, report)
    return found


def answer(
    parts: list[bytes], states: list, *, kind: bytes = b"application/json", method: str = "POST",
) -> tuple[dict, bytes]:
    """Headers and body of what a client gets of a server that sends these parts."""
    sent = []

    async def app(scope, receive, send):
        if (watched := frontend._watched.get()) is not None:
            watched += states
        length = b"%d" % sum(map(len, parts))
        headers = [(b"Content-Type", kind), (b"Content-Length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, part in enumerate(parts, 1):
            more = number < len(parts)
            await send({"type": "http.response.body", "body": part, "more_body": more})

    async def send(message):
        sent.append(message)

    asyncio.run(AddReports(app)({"type": "http", "method": method}, None, send))
    assert [m["type"] for m in sent[1:]] == ["http.response.body"] * (len(sent) - 1)
    headers = {name.lower(): value for name, value in sent[0]["headers"]}
    return headers, b"".join(m["body"] for m in sent[1:])


def whole(choices: int) -> bytes:
    """An answer that is no stream."""
    found = {
        "choices": [{"index": i, "text": "é"} for i in range(choices)],
        "kv_transfer_params": {"quickmerge": FIRST},
    }
    return json.dumps(found, ensure_ascii=False).encode()


def test_an_answer_to_several_prompts_has_a_report_for_each():
    states = [state("cmpl-a-1", SECOND), state("cmpl-a-0", FIRST), state("cmpl-a-0", FIRST)]
    for parts in ([whole(4)], [whole(4)[:9], whole(4)[9:]]):
        headers, body = answer(parts, states)
        told = json.loads(body)["kv_transfer_params"]
        assert told == {"quickmerge": FIRST, "quickmerge_prompts": [FIRST, SECOND]}
        assert int(headers[b"content-length"]) == len(body)


@pytest.mark.parametrize(("states", "parts"), [
    ([state("chatcmpl-a", FIRST)], [whole(1)]),
    ([state("cmpl-a-0", None), state("cmpl-a-1", None)], [whole(2)]),
    ([state("beam-0", FIRST), state("beam-1", FIRST)], [whole(1)]),
    ([state("cmpl-a-0", FIRST), state("cmpl-a-1", FIRST)], [b"no JSON"]),
    ([state("cmpl-a-0", FIRST), state("cmpl-a-1", FIRST)], [b"[1]", b""]),
])
def test_other_answers_stay_as_they_are(states, parts):
    assert answer(parts, states)[1] == b"".join(parts)


def test_other_methods_and_contents_stay_as_they_are():
    states = [state("cmpl-a-0", FIRST), state("cmpl-a-1", SECOND)]
    assert answer([whole(2)], states, method="GET")[1] == whole(2)
    assert answer([whole(2)], states, kind=b"text/plain")[1] == whole(2)


def event(content: dict | str, name: str = "") -> bytes:
    """One event of a stream."""
    data = content if isinstance(content, str) else json.dumps(content, separators=(",", ":"))
    return (f"event: {name}\n" if name else "").encode() + f"data: {data}\n\n".encode()


def chunk(index: int, text: str, reason: str | None) -> bytes:
    """Of a completion."""
    return event({"id": "x", "choices": [{"index": index, "text": text, "finish_reason": reason}]})


def told(event: bytes) -> dict | None:
    data = event.partition(b"data: ")[2]
    content = {} if data.strip() == b"[DONE]" else json.loads(data)
    return (content.get("kv_transfer_params") or {}).get("quickmerge")


@pytest.mark.parametrize("cut", [None, 1, 7, 100_000])
def test_the_last_event_of_each_answer_in_a_stream_has_the_report(cut):
    events = [
        chunk(0, "a", None), chunk(2, 'the text "finish_reason":"stop" data: {}', None),
        chunk(1, "", "stop"), chunk(2, "b", "length"), chunk(0, "", "stop"),
        chunk(3, "c", "length"), event({"choices": [], "usage": {"total_tokens": 4}}),
        event("[DONE]"),
    ]
    stream = b"".join(events)
    parts = events if cut is None else [stream[i : i + cut] for i in range(0, len(stream), cut)]
    states = [state(f"cmpl-a-{i // 2}", (FIRST, SECOND)[i // 2]) for i in range(4)]  # n=2
    _, body = answer(parts, states, kind=b"text/event-stream; charset=utf-8")
    seen = [part + b"\n\n" for part in body.split(b"\n\n")[:-1]]
    assert [told(one) for one in seen] == [
        None, None, FIRST, SECOND, FIRST, SECOND, None, None,
    ]
    plain = [one for one in seen if told(one) is None]
    assert plain == [one for one, new in zip(events, seen, strict=True) if told(new) is None]
    for new, old in zip(seen, events, strict=True):
        if told(new):
            content = json.loads(new.partition(b"data: ")[2])
            del content["kv_transfer_params"]
            assert content == json.loads(old.partition(b"data: ")[2])


@pytest.mark.parametrize("name", ["message_delta", "message-end"])
def test_other_protocols_have_it_in_their_last_event(name):
    events = [
        event({"type": "message_start"}, "message_start"),
        event({"type": name, "delta": {"stop_reason": "end_turn"}}, name),
        event({"type": "message_stop"}, "message_stop"),
    ]
    _, body = answer(events, [state("chatcmpl-a", FIRST)], kind=b"text/event-stream")
    assert [told(one) for one in body.split(b"\n\n")[:-1]] == [None, FIRST, None]


def test_a_stream_without_a_report_stays_as_it_is():
    events = [chunk(0, "a", None), chunk(0, "", "stop"), event("[DONE]")]
    _, body = answer(events, [state("chatcmpl-a", None)], kind=b"text/event-stream")
    assert body == b"".join(events)


def process(states: dict, outputs: list) -> None:
    """What vLLM's frontend does with the outputs of a step, up to handing them on."""
    for one in outputs:
        frontend._carry(states.get(one.request_id), one, "quickmerge")


def output(request_id: str, params: dict | None = None) -> SimpleNamespace:
    return SimpleNamespace(request_id=request_id, kv_transfer_params=params)


def test_a_report_is_repeated_until_a_newer_one_comes():
    states = {"a": state("a", None), "b": state("b", None)}
    first, later, other = output("a", {"quickmerge": FIRST}), output("a"), output("b")
    process(states, [first, other])
    process(states, [later, output("gone", {"quickmerge": FIRST})])
    assert later.kv_transfer_params == {"quickmerge": FIRST}
    assert other.kv_transfer_params is None
    last = output("a", {"quickmerge": SECOND, "more": 1})
    process(states, [last, theirs := output("b", {"theirs": 1})])
    assert last.kv_transfer_params == {"quickmerge": SECOND, "more": 1}
    assert theirs.kv_transfer_params == {"theirs": 1}
    assert getattr(states["a"], frontend.REPORT) == SECOND
