"""The OpenAI-compatible server, started as a person would, spoken to over HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest

from qm_vllm.assets.essay import demo_document
from qm_vllm_eval.serving import soak
from qm_vllm_eval.serving.ask import CHAT, COMPLETIONS, Ask
from qm_vllm_eval.serving.client import send
from qm_vllm_eval.serving.server import Server

pytestmark = pytest.mark.e2e
FLAGS = (
    *soak.FLAGS, *soak.AGENT_FLAGS, "--served-model-name", "smol",
    "--num-gpu-blocks-override", str(soak.NUM_BLOCKS),
    "--allow-options", "all",  # the soak's traffic and the tests of turns ask for research options
)


@pytest.fixture(scope="module")
def server(tiny_chat, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with Server([str(tiny_chat), *FLAGS], log, development=True) as running:
        yield running


def document(words: int = 1000) -> str:
    return " ".join(demo_document().text.split()[:words])


def chat(server: Server, question: str, **extra: object) -> dict:
    body = {
        "model": "smol", "max_tokens": 16, "temperature": 0,
        "messages": [{"role": "user", "content": f"{document()}\n\n{question}"}],
        **extra,
    }
    return server.ask(CHAT, body)


def report(answer: dict) -> dict:
    return answer["kv_transfer_params"]["quickmerge"]


def refused(server: Server, path: str, body: dict) -> str:
    with pytest.raises(urllib.error.HTTPError) as error:
        server.ask(path, {"model": "smol", "max_tokens": 4, **body})
    assert error.value.code == 400
    return json.load(error.value)["error"]["message"]


def test_requests_with_and_without_options(server):
    questions = [f"Give word number {i}." for i in range(3)]
    options = [
        {}, {"vllm_xargs": {"qm_ratio": 0.25}}, {"vllm_xargs": {"qm_enabled": 0}},
    ]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda pair: chat(server, pair[0], **pair[1]),
                                zip(questions, options, strict=True)))
    default, quarter, off = map(report, answers)
    assert default["status"] == "compressed"
    assert default["ratio"] <= 0.4
    assert quarter["status"] == "compressed"
    assert quarter["ratio"] <= 0.25
    assert off["status"] == "untouched"
    assert "disabled" in off["reason"]
    assert off["kv_blocks"] > 2 * default["kv_blocks"] > 2 * quarter["kv_blocks"]
    assert all(a["choices"][0]["message"]["content"] for a in answers)


def test_bad_options_are_named_and_the_server_lives(server):
    said = refused(server, CHAT, {
        "messages": [{"role": "user", "content": "Hi."}],
        "vllm_xargs": {"qm_ratio": 0.5, "qm_colour": "red"},
    })
    assert "'colour' is not an option" in said
    with pytest.raises(urllib.error.HTTPError):
        chat(server, "word " * 9000)
    assert report(chat(server, "Anything."))["status"] == "compressed"


def test_ranges_are_measured_against_the_prompt_as_the_server_counts_it(server):
    messages = [{"role": "user", "content": document(400)}]
    tokens = report(server.ask(CHAT, {
        "model": "smol", "max_tokens": 1, "messages": messages,
    }))["source_tokens"]
    for path, prompt in ((CHAT, {"messages": messages}), (COMPLETIONS, {"prompt": document(400)})):
        said = refused(server, path, prompt | {
            "vllm_xargs": {"qm_protect_ranges": "[[5, 99999]]"}
        })
        assert "protect_ranges has (5, 99999), but the prompt has" in said
    for stop, fits in ((tokens, True), (tokens + 1, False)):
        options = {"kv_transfer_params": {"quickmerge": {"protect_ranges": [[5, stop]]}}}
        if fits:
            body = {"model": "smol", "max_tokens": 1, "messages": messages, **options}
            assert report(server.ask(CHAT, body))["status"] == "compressed"
        else:
            assert f"has {tokens} tokens" in refused(server, CHAT, {"messages": messages} | options)


def test_system_and_last_user_turns_of_a_chat_stay_whole(server):
    messages = [
        {"role": "system", "content": "Answer like a pirate. " * 4},
        {"role": "user", "content": document(900)},
        {"role": "assistant", "content": "Aye, a long tale. " * 9},
        {"role": "user", "content": "Now say in one line who wrote to whom and why. " * 4},
    ]

    def kept(**options):
        body = {
            "model": "smol", "max_tokens": 2, "messages": messages,
            "kv_transfer_params": {"quickmerge": {"details": True, **options}},
        }
        told = report(server.ask(CHAT, body))
        return told["kept_turns"], set(told["details"]["kept_indices"])

    turns, indices = kept()
    assert [role for role, _, _ in turns] == ["system", "user"]
    assert turns[0][1] == 0
    for _, start, stop in turns:
        assert set(range(start, stop)) <= indices
    (turn, _), indices = kept(keep_roles="assistant")  # the second is the answer's empty head
    assert turn[0] == "assistant"
    assert set(range(turn[1], turn[2])) <= indices
    turns, indices = kept(keep_roles="none")
    assert turns == []
    del messages[1:3]
    messages[-1]["content"] += document(900)  # the document is in the last turn
    assert [role for role, _, _ in kept()[0]] == ["system"]


def test_streams_equal_whole_answers_and_the_same_request_id_is_no_trouble(server):
    body = {"model": "smol", "max_tokens": 12, "temperature": 0, "prompt": document(700)}
    whole = server.ask(COMPLETIONS, body)["choices"][0]["text"]
    asks = [
        Ask(COMPLETIONS, body | {"stream": stream}, headers={"X-Request-Id": "the-same"})
        for stream in (True, False, True)
    ]

    async def all_at_once():
        async with aiohttp.ClientSession() as session:
            return await asyncio.gather(*(send(session, server.address, a) for a in asks))

    answers = asyncio.run(all_at_once())
    assert [(a.status, a.texts) for a in answers] == [(200, (whole,))] * 3


def test_structured_output_of_a_compressed_prompt(server):
    answer = chat(server, "Yes or no?", structured_outputs={"choice": ["yes", "no"]})
    assert answer["choices"][0]["message"]["content"] in ("yes", "no")
    assert report(answer)["status"] == "compressed"


def test_metrics_stand_beside_vllms_own(server):
    for _ in range(2):
        chat(server, "The same question twice.")
    seen = server.metrics()
    kept, source = seen["qm_vllm:kept_tokens_total"], seen["qm_vllm:source_tokens_total"]
    assert 0 < kept < 0.5 * source
    assert seen["qm_vllm:memo_hits_total"] >= 1
    assert seen["qm_vllm:jobs_total"] >= 1
    assert seen["vllm:num_requests_running"] == 0
    board = Path(__file__).parents[2] / "docs" / "grafana.json"
    shown = set(re.findall(r"qm_vllm:\w+", board.read_text()))
    assert len(shown) > 10
    assert shown <= seen.keys()


def test_a_minute_of_mixed_load_leaves_nothing_behind(server, tiny_chat, tmp_path):
    file = tmp_path / "soak.json"
    script = Path(__file__).parents[2] / "scripts" / "soak.py"
    done = subprocess.run(
        [sys.executable, str(script), "--seconds", "60", "--json", str(file),
         "--address", server.address, "--model", str(tiny_chat)],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    figures = json.loads(file.read_text())
    for name in ("requests", "aborted", "preempted", "memo_hits", "bad_requests", "checked_alone"):
        assert figures[name] > 0, name
    for name in (
        "bad_requests_not_4xx", "leaked_blocks", "live_artifacts", "mismatches", "engine_deaths",
    ):
        assert figures[name] == 0, name
    of = figures["by_kind"]
    assert {"form of a text", "form of a chat", "responses", "messages"} <= of.keys()
    assert sum(of[kind]["calls"] for kind in of if kind.startswith("tools")) > 0


def test_a_killed_engine_is_an_error_for_clients_and_a_restart_serves(
    server, tiny_chat, tmp_path
):
    """The last test: the server is dead after it."""
    body = {"model": "smol", "temperature": 0, "prompt": document(900)}
    before = sorted(p.name for p in tiny_chat.iterdir())
    want = server.ask(COMPLETIONS, body | {"max_tokens": 6})["choices"][0]["text"]
    long = [
        Ask(COMPLETIONS, body | {"max_tokens": 900, "ignore_eos": True, "stream": stream,
                                 "prompt": f"{i} {document(400)}"})
        for i, stream in enumerate((True, False, True, False))
    ]

    async def all_at_once():
        async with aiohttp.ClientSession() as session:
            return await asyncio.gather(*(send(session, server.address, a) for a in long))

    def kill_when_running():
        while server.metrics()["vllm:num_requests_running"] < 2:
            time.sleep(0.05)
        server.kill_engine()

    threading.Thread(target=kill_when_running).start()
    answers = asyncio.run(asyncio.wait_for(all_at_once(), 120))
    assert all(a.status >= 500 or a.problem for a in answers), answers
    deadline = time.monotonic() + 60
    while server.alive():
        assert time.monotonic() < deadline
    with Server([str(tiny_chat), *FLAGS], tmp_path / "log.txt") as again:
        assert again.ask(COMPLETIONS, body | {"max_tokens": 6})["choices"][0]["text"] == want
    assert sorted(p.name for p in tiny_chat.iterdir()) == before
