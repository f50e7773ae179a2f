"""The client of peer workers against tiny workers, and the helpers of the peers' side."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qm_vllm_eval.peers.client import PeerClient, PeerFailed, kvpress_client
from qm_vllm_eval.peers.environment import PeerMissing, peer_python
from qm_vllm_eval.peers.llmlingua_worker import passages
from qm_vllm_eval.peers.model_folder import classic_config, classic_tokenizer, readable_folder

ECHO = """
import os, sys
from qm_vllm_eval.peers.serve import protected_output, serve

def handle(request):
    print("a library prints")
    os.write(1, b"compiled code prints\\n")
    if request.get("die"):
        print("last words", file=sys.stderr)
        os._exit(3)
    return {"twice": 2 * request["number"], "process": os.getpid()}

serve(handle, protected_output())
"""


def _client(code: str = ECHO) -> PeerClient:
    return PeerClient([sys.executable, "-c", code], "echo")


def test_one_process_answers_all_requests_and_prints_do_not_disturb() -> None:
    with _client() as client:
        first, second = client.request({"number": 2}), client.request({"number": 3})
    assert (first["twice"], second["twice"]) == (4, 6)
    assert first["process"] == second["process"]


def test_failed_request_is_answered_with_its_reason_and_worker_lives() -> None:
    with _client() as client:
        assert client.request({"other": 1}) == {"error": "KeyError: 'number'"}
        assert client.request({"number": 1})["twice"] == 2


def test_crash_is_reported_with_stderr_and_next_request_starts_anew() -> None:
    with _client() as client:
        with pytest.raises(PeerFailed, match=r"(?s)exit status 3.*last words"):
            client.request({"number": 1, "die": True})
        assert client.request({"number": 5})["twice"] == 10


def test_reply_that_is_not_json_is_a_failure() -> None:
    code = "input(); print('hello', flush=True); input()"
    with _client(code) as client, pytest.raises(PeerFailed, match="something else than JSON"):
        client.request({})


def test_program_that_is_not_there() -> None:
    client = PeerClient(["/nowhere/python"], "ghost")
    with pytest.raises(PeerFailed, match="ghost does not start"):
        client.request({})


def test_close_twice_and_before_start() -> None:
    client = _client()
    client.close()
    assert client.request({"number": 1})["twice"] == 2
    client.close()
    client.close()


def test_missing_environment_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QM_VLLM_PEERS", str(tmp_path))
    with pytest.raises(PeerMissing, match=r"run scripts/setup_peers\.sh"):
        kvpress_client("model")
    with pytest.raises(ValueError, match="unknown peer"):
        peer_python("other")


def test_rotary_settings_are_said_in_the_words_of_transformers_4() -> None:
    plain = {"dtype": "bfloat16", "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}}
    classic = classic_config(plain)
    assert (classic["rope_theta"], classic["rope_scaling"]) == (1e5, None)
    assert classic["torch_dtype"] == "bfloat16"
    scaled = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}}
    assert classic_config(scaled)["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    old = {"rope_theta": 1e4, "rope_scaling": None}
    assert classic_config(old) == old
    with pytest.raises(ValueError, match="one rope_theta for all layers"):
        classic_config({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}})


def test_readable_folder_links_weights_and_goes_away(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"rope_parameters": {"rope_theta": 7.0}}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with readable_folder(tmp_path) as folder:
        assert (folder / "model.safetensors").read_bytes() == b"weights"
        assert '"rope_theta": 7.0' in (folder / "config.json").read_text()
        assert "PreTrainedTokenizerFast" in (folder / "tokenizer_config.json").read_text()
    assert not folder.exists()
    assert classic_tokenizer({"extra_special_tokens": ["<a>"]}) == {
        "additional_special_tokens": ["<a>"]
    }


def test_passages_hold_the_whole_text_in_parts() -> None:
    text = "\n".join(f"Sentence {n} has six words here. And four more words." for n in range(60))
    parts = passages(text)
    assert len(parts) > 3
    assert " ".join(parts).split() == text.split()
    assert all(100 <= len(part.split()) < 110 for part in parts[:-1])
    assert passages("") == [""]
