"""Layers that look things up keep more: real weights find facts in an eighth of the KV."""

from __future__ import annotations

import pytest

from qm_vllm import QuickMergeConfig
from tests.e2e.conftest import FACT
from tests.engines import engine
from tests.integration.generate import greedy, run

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def llm(smollm2):
    with engine(smollm2, QuickMergeConfig(delivery="native")) as llm:
        yield llm


@pytest.mark.parametrize("depth", [0.2, 0.5, 0.8])
def test_a_fact_survives_in_an_eighth(llm, hidden_fact, depth):
    tokenizer, prompt = llm.get_tokenizer(), hidden_fact(depth)
    ((plain, before),) = run(llm, [prompt], greedy(10, enabled=False))
    ((tokens, report),) = run(llm, [prompt], greedy(10, ratio=0.125))
    assert report["status"] == "compressed", report
    kept = report["kept_by_layers"]
    assert kept["others"] < report["kept_tokens"] < kept["looking_up"]
    assert report["kept_tokens"] == (10 * kept["looking_up"] + 20 * kept["others"]) // 30
    assert report["kv_bytes"] < before["kv_bytes"] / 5
    assert FACT in tokenizer.decode(plain)
    assert FACT in tokenizer.decode(tokens)
