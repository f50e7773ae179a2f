"""The llmlingua worker with a real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qm_vllm_eval.peers.client import PeerClient, llmlingua_client

FILLER = [
    "The river carries cold water past the old mill and the empty boats.",
    "A grey cat sleeps on the wall while the market opens for the day.",
    "Nobody in the village remembers when the bridge was painted last.",
]
FACT = "The secret word of the day is pineapple."
CONTEXT = " ".join([*(FILLER * 5), FACT, *(FILLER * 3)])
QUESTION = "What is the secret word of the day?"


@pytest.fixture(scope="module")
def client(llmlingua_python: Path, model_folder: Path) -> Iterator[PeerClient]:
    with llmlingua_client(model_folder) as started:
        yield started


@pytest.mark.parametrize("method", ["llmlingua", "longllmlingua"])
def test_text_is_shorter_and_never_above_the_target(client: PeerClient, method: str) -> None:
    reply = client.request(
        {
            "method": method,
            "context": CONTEXT,
            "question": QUESTION,
            "target_tokens": 120,
            "tokens_now": 400,
        }
    )
    assert reply["error"] is None
    assert 90 <= reply["tokens"] <= 120
    assert 0 < len(reply["text"].split()) < len(CONTEXT.split())
    assert 1 <= reply["calls"] <= 4
    assert f"rank_method={method}" in reply["settings"]


def test_text_that_is_short_enough_comes_back_as_it_is(client: PeerClient) -> None:
    request = {
        "method": "llmlingua",
        "context": FACT,
        "question": "",
        "target_tokens": 50,
        "tokens_now": 10,
    }
    assert client.request(request)["text"] == FACT


def test_unknown_method_is_an_error(client: PeerClient) -> None:
    request = {"context": FACT, "question": "", "target_tokens": 5, "tokens_now": 10}
    assert "unknown method" in client.request({**request, "method": "other"})["error"]
