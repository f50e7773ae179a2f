"""The OpenAI-compatible server, started as a person would, spoken to over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from qm_vllm.cli.document import demo_document

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(smollm2, tmp_path_factory):
    """Base address of a running server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path_factory.mktemp("server") / "log.txt").open("w+")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "qm_vllm.cli.main", "serve", str(smollm2), "--ratio", "0.4",
            "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "smol",
            "--block-size", "32", "--max-model-len", "6000", "--enforce-eager",
        ],
        stdout=log, stderr=subprocess.STDOUT,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            if process.poll() is not None:
                log.seek(0)
                pytest.fail("the server ended:\n" + log.read()[-3000:])
            try:
                urllib.request.urlopen(address + "/health", timeout=2)
                break
            except OSError:
                time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def chat(address: str, question: str, **extra: object) -> dict:
    body = {
        "model": "smol", "max_tokens": 16, "temperature": 0,
        "messages": [{"role": "user", "content": f"{demo_document().text}\n\n{question}"}],
        **extra,
    }
    request = urllib.request.Request(
        address + "/v1/chat/completions", json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def test_requests_with_and_without_options(server):
    questions = [f"Give word number {i}." for i in range(3)]
    options = [
        {}, {"vllm_xargs": {"qm_ratio": 0.25}}, {"vllm_xargs": {"qm_enabled": 0}},
    ]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda pair: chat(server, pair[0], **pair[1]),
                                zip(questions, options, strict=True)))
    default, quarter, off = (a["kv_transfer_params"]["quickmerge"] for a in answers)
    assert default["status"] == "compressed"
    assert default["ratio"] <= 0.4
    assert quarter["status"] == "compressed"
    assert quarter["ratio"] <= 0.25
    assert off["status"] == "untouched"
    assert "disabled" in off["reason"]
    assert off["kv_blocks"] > 2 * default["kv_blocks"] > 2 * quarter["kv_blocks"]
    assert all(a["choices"][0]["message"]["content"] for a in answers)


def test_bad_options_are_named_and_the_server_lives(server):
    with pytest.raises(urllib.error.HTTPError) as refused:
        chat(server, "Anything.", vllm_xargs={"qm_ratio": 0.5, "qm_colour": "red"})
    assert refused.value.code == 400
    assert "'colour' is not an option" in json.load(refused.value)["error"]["message"]
    with pytest.raises(urllib.error.HTTPError):
        chat(server, "word " * 9000)
    again = chat(server, "Anything.")["kv_transfer_params"]["quickmerge"]
    assert again["status"] == "compressed"


def test_metrics_stand_beside_vllms_own(server):
    for _ in range(2):
        chat(server, "The same question twice.")
    with urllib.request.urlopen(server + "/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    totals = {
        name: sum(float(line.split()[-1]) for line in lines if line.startswith(f"qm_vllm:{name}"))
        for name in ("source_tokens_total", "kept_tokens_total", "memo_hits_total", "jobs_total")
    }
    assert 0 < totals["kept_tokens_total"] < 0.5 * totals["source_tokens_total"]
    assert totals["memo_hits_total"] >= 1
    assert totals["jobs_total"] >= 1
    assert any("vllm:" in line and "qm_vllm" not in line for line in lines)
