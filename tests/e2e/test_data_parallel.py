"""Two engines behind one server, each of which compresses what it gets."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from qm_vllm_eval.serving import soak
from qm_vllm_eval.serving.ask import COMPLETIONS
from qm_vllm_eval.serving.server import Server

pytestmark = pytest.mark.e2e
FLAGS = (
    *soak.FLAGS, "--served-model-name", "smol", "--num-gpu-blocks-override", "80",
    "--data-parallel-size", "2",
)


def test_two_engines_answer_alike_and_count_for_themselves(tiny_chat, tmp_path):
    prompts = [random.Random(number).choices(range(100, 4000), k=700) for number in range(6)]

    def ask(ids: list[int]) -> dict:
        body = {"model": "smol", "prompt": ids, "max_tokens": 8, "temperature": 0}
        return server.ask(COMPLETIONS, {**body, "ignore_eos": True})

    with Server([str(tiny_chat), *FLAGS], tmp_path / "log.txt", development=True) as server:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, prompts * 2))
        jobs = server.by_labels("qm_vllm:jobs_total")
    said = [answer["choices"][0]["text"] for answer in answers]
    assert said[:6] == said[6:]
    reports = [answer["kv_transfer_params"]["quickmerge"] for answer in answers]
    assert {report["status"] for report in reports} == {"compressed"}
    assert len(jobs) == 2
    assert all(jobs)
    assert 6 <= sum(jobs) <= 12
