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

PRESSES = [
    "snapkv", "knorm", "expected_attention", "pyramidkv", "merging_snapkv", "keydiff",
    "compactor", "kvzip", "kvzip_global",
]
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
from qm_vllm_eval.peers.prefill import plain_prefill

def parts(kept):
    return [part for kv in kept.kv for part in kv] + (kept.heads or [])

torch.set_num_threads(2)
ids, result = json.loads(sys.argv[2]), {}
with readable_folder(sys.argv[1]) as folder:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    prefill = plain_prefill(model, ids)
    for name in presses.PRESSES:
        press, _ = presses.build_press(name, len(ids), 50, model)
        assert presses.serves_from_prefill(press) != name.startswith("kvzip"), name
        ours = presses.compress(model, press, prefill)
        theirs = presses.compress_canonically(model, press, prefill.ids)
        result[name] = [
            all(torch.equal(a, b) for a, b in zip(parts(ours), parts(theirs), strict=True)),
            [float(heads.float().mean()) for heads in ours.heads] if ours.heads
            else [keys.shape[2] for keys, _ in ours.kv],
        ]
print(json.dumps(result))
"""

# kvpress masks what KVzip drops while the model reads on; the project's reader has it taken out.
MASKED = """
import json, sys
import torch
from kvpress import KVzipPress
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from qm_vllm_eval.peers import presses
from qm_vllm_eval.peers.model_folder import readable_folder
from qm_vllm_eval.peers.prefill import plain_prefill
from qm_vllm_eval.reference.decoder import Decoder
from qm_vllm_eval.reference.reader import CompressedContext, Reader

torch.set_num_threads(2)
text = "The harbour master wrote down which ships came in, and who paid. " * 8
feed, target, said = [198, 1780], [253, 2345], []
with readable_folder(sys.argv[1]) as folder:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    turn = [{"role": "user", "content": text}]
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(turn)
    reader, prefill, keep = Reader(Decoder(model)), plain_prefill(model, ids), len(ids) // 4
    for name in ("kvzip", "kvzip_global"):
        press, _ = presses.build_press(name, len(ids), keep, model)
        kept = presses.compress(model, press, prefill)
        context = CompressedContext(
            [keys[0] for keys, _ in kept.kv], [values[0] for _, values in kept.kv], len(ids),
            heads=kept.heads,
        )
        ours = reader.read([context], [feed], target)[0].nll
        stock = KVzipPress(press.compression_ratio, layerwise=name == "kvzip")
        cache = DynamicCache()
        with torch.inference_mode():
            with stock(model):
                model.model(input_ids=prefill.ids, past_key_values=cache)
            rows = torch.tensor([[*feed, *target[:-1]]])
            logits = model(rows, past_key_values=cache).logits[0, -len(target):].log_softmax(-1)
        theirs = -logits.gather(-1, torch.tensor(target)[:, None]).mean()
        counts = torch.stack(kept.heads).float()
        said.append([ours, float(theirs), float(counts.mean()) - keep, float(counts.std())])
print(json.dumps(said))
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
        elif name == "kvzip_global":
            assert sum(kept) / len(kept) == pytest.approx(50)
            assert max(kept) > 2 * min(kept)
        else:
            assert {round(count, 3) for count in kept} == {50}


def test_what_kvzip_masks_reads_like_what_is_taken_out(
    kvpress_python: Path, model_folder: Path
) -> None:
    for ours, theirs, more, spread in json.loads(run_in(kvpress_python, MASKED, model_folder)):
        assert ours == pytest.approx(theirs, abs=1e-3)
        assert more == pytest.approx(0, abs=1e-3)
        assert spread > 1


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
