"""Prompts beyond ``--max-model-len`` over HTTP and by line: served compressed, or a 400."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from qm_vllm.assets.essay import demo_document
from qm_vllm_eval.serving import soak
from qm_vllm_eval.serving.server import Server
from tests.e2e.test_commands import qm_vllm
from tests.e2e.test_endpoints import ENDPOINTS

pytestmark = pytest.mark.e2e
LENGTH, LONGEST = 1024, 6000
FLAGS = (
    *soak.FLAGS, "--served-model-name", "smol", "--num-gpu-blocks-override", "300",
    "--max-model-len", str(LENGTH), "--max-source-tokens", str(LONGEST), "--keep-roles", "none",
    "--ratio", "0.2", "--allow-options", "all",
)


@pytest.fixture(scope="module")
def server(tiny_chat, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with Server([str(tiny_chat), *FLAGS], log, development=True) as running:
        yield running


def text(words: int = 2200) -> str:
    return " ".join(demo_document().text.split()[:words])


def refused(server: Server, path: str, body: dict) -> str:
    with pytest.raises(urllib.error.HTTPError) as error:
        server.ask(path, {"model": "smol", **body})
    assert error.value.code == 400
    return error.value.read().decode()


@pytest.mark.parametrize("name", ENDPOINTS)
def test_every_endpoint_serves_a_prompt_beyond_the_length(server, name):
    endpoint = ENDPOINTS[name]
    answer = server.ask(endpoint.path, {"model": "smol", **endpoint.body(text(), 200)})
    report = answer["kv_transfer_params"]["quickmerge"]
    assert report["status"] == "compressed"
    assert LENGTH < report["source_tokens"] == endpoint.prompt(answer["usage"])
    assert report["kept_tokens"] + 200 <= LENGTH
    assert report["delivery"] == "inject"


def test_an_answer_without_a_limit_ends_at_the_models_length(server):
    body = {"model": "smol", "prompt": text(1500), "ignore_eos": True, "temperature": 0}
    answer = server.ask("/v1/chat/completions", {
        **body, "messages": [{"role": "user", "content": body.pop("prompt")}],
    })
    report = answer["kv_transfer_params"]["quickmerge"]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == LENGTH - report["kept_tokens"]


def test_clients_are_told_the_longest_prompt(server):
    with urllib.request.urlopen(f"{server.address}/v1/models") as said:
        assert json.load(said)["data"][0]["max_model_len"] == LONGEST + 1


def test_what_does_not_fit_is_a_400_that_names_the_numbers(server):
    body = {"prompt": text(), "max_tokens": 700}
    said = refused(server, "/v1/completions", body)
    tokens = server.ask("/tokenize", {"model": "smol", "prompt": body["prompt"]})["count"]
    for number in (f"{tokens} tokens", f"max_model_len is {LENGTH}", "max_tokens=700"):
        assert number in said, said
    assert "would be kept" in said
    too_long = " ".join(["word"] * (LONGEST + 100))
    assert str(LONGEST + 1) in refused(server, "/v1/completions", {"prompt": too_long})


@pytest.mark.parametrize("stream", [False, True])
def test_what_only_the_engine_finds_is_a_400_or_an_event_of_a_stream(server, stream):
    """The engine lives, and serves the next one."""
    body = {
        "prompt": text(), "max_tokens": 8, "stream": stream, "vllm_xargs": {"qm_min_tokens": 9000},
    }
    if stream:
        request = urllib.request.Request(
            f"{server.address}/v1/completions", json.dumps({"model": "smol", **body}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            said = answer.read().decode()
    else:
        said = refused(server, "/v1/completions", body)
    assert "fewer than min_tokens=9000" in said, said
    del body["vllm_xargs"], body["stream"]
    assert server.ask("/v1/completions", {"model": "smol", **body})["choices"][0]["text"]


def test_lines_of_a_batch_may_be_longer_than_the_model_length(tiny_chat, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"id": "long", "prompt": text()}, {"id": "longer", "prompt": "word " * 9000},
             {"id": "short", "prompt": text(300)}]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = qm_vllm(
        "generate", "--model", str(tiny_chat), "--input", str(source), "--output", str(target),
        "--ratio", "0.2", "--max-tokens", "8", "--eager", "--max-model-len", str(LENGTH),
        "--max-source-tokens", str(LONGEST),
    )
    assert "line 2: the prompt has" in done.stderr
    rows = {row["id"]: row["quickmerge"] for row in map(json.loads, target.open())}
    assert set(rows) == {"long", "short"}
    assert rows["long"]["status"] == "compressed"
    assert rows["long"]["source_tokens"] > LENGTH
