"""The kvpress worker with a real model, against kvpress's own way and the project's reader."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from qm_vllm_eval.peers.client import PeerClient, kvpress_client
from tests.peers.conftest import run_in

PRESSES = ["snapkv", "knorm", "expected_attention", "pyramidkv", "merging_snapkv", "keydiff"]
PROMPT = [(37 * n * n + 11 * n) % 20000 + 500 for n in range(200)]
REQUEST: dict[str, Any] = {
    "context_ids": PROMPT,
    "feed_ids": PROMPT[20:30],
    "target_ids": PROMPT[30:33],
    "ks": [200, 50],
    "presses": [*PRESSES, "nothing"],
    "max_new_tokens": 4,
    "eos_ids": [2],
}

# One prefill for all presses must leave the very same bits as a run with the press inside.
IDENTITY = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
from qm_vllm_eval.peers import presses
from qm_vllm_eval.peers.model_folder import readable_folder

torch.set_num_threads(2)
ids = json.loads(sys.argv[2])
with readable_folder(sys.argv[1]) as folder:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
prefill = presses.plain_prefill(model, ids)
result = {}
for name in presses.PRESSES:
    press, _ = presses.build_press(name, len(ids), 50, model)
    assert presses.serves_from_prefill(press), name
    ours = presses.compress(model, press, prefill)
    theirs = presses.compress_canonically(model, press, prefill.ids)
    result[name] = [
        all(torch.equal(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y)),
        [keys.shape[2] for keys, _ in ours],
    ]
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def reply(kvpress_python: Path, model_folder: Path) -> dict[str, Any]:
    client: PeerClient = kvpress_client(model_folder)
    with client:
        return client.request(REQUEST)


def test_one_prefill_gives_the_bits_of_the_documented_way(
    kvpress_python: Path, model_folder: Path
) -> None:
    result = json.loads(run_in(kvpress_python, IDENTITY, model_folder, json.dumps(PROMPT)))
    assert set(PRESSES) <= set(result)
    assert {name: same for name, (same, _) in result.items() if not same} == {}
    for name, (_, kept) in result.items():
        if name == "pyramidkv":
            assert 49 < sum(kept) / len(kept) <= 50
            assert kept[0] > 2 * kept[-1]
        else:
            assert set(kept) == {50}


def test_every_press_and_k_has_a_row(reply: dict[str, Any]) -> None:
    assert reply["error"] is None
    assert reply["context_tokens"] == len(PROMPT)
    named = [(row["press"], row["k"]) for row in reply["rows"]]
    assert named == [(press, k) for k in (200, 50) for press in REQUEST["presses"]]
    for row in reply["rows"]:
        if row["press"] == "nothing":
            assert "unknown press" in row["error"]
            assert row["nll"] is None
            continue
        assert row["error"] is None
        assert row["k"] - 1 < row["kept_tokens"] <= row["k"]
        assert math.isfinite(row["nll"])
        assert len(row["prediction_ids"]) <= 4
        assert row["settings"]


def test_keeping_all_reads_as_the_project_reads(reply: dict[str, Any], model_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16).eval()
    told = torch.tensor([PROMPT + REQUEST["feed_ids"] + REQUEST["target_ids"]])
    with torch.inference_mode():
        logits = model(told).logits[0, -4:-1].float().log_softmax(-1)
    nll = -logits.gather(-1, told[0, -3:, None]).mean()
    whole = [row["nll"] for row in reply["rows"] if row["k"] == 200 and not row["error"]]
    assert len(set(whole)) == 1
    assert whole[0] == pytest.approx(float(nll), abs=0.1)  # bfloat16, two releases
