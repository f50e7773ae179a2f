"""Two tensor-parallel ranks on a CPU: the same answers, and no rank is left waiting."""

from __future__ import annotations

import pytest

from qm_vllm import QuickMergeConfig, engine_args
from tests.engines import engine, random_prompt
from tests.integration.failing_worker import STAGES
from tests.integration.generate import greedy, run

CONFIG = QuickMergeConfig(ratio=0.4)


@pytest.fixture(scope="module")
def llm(tiny_models):
    arguments = engine_args(CONFIG) | {
        "worker_cls": "tests.integration.failing_worker.FailingWorker"
    }
    with engine(
        tiny_models("llama"), tensor_parallel_size=2, skip_tokenizer_init=True, **arguments
    ) as llm:
        yield llm


def test_an_exception_on_one_rank_ends_the_request_on_all(llm, want):
    """Then the next job runs, and gives what the reference gives."""
    for number, stage in enumerate(STAGES):
        ids = random_prompt(500, number)
        ((tokens, report),) = run(llm, [ids], greedy(6))
        assert report["status"] == "untouched", stage
        why = report["reason"]
        assert "another tensor-parallel rank failed" in why or stage in why
        assert tokens == want(ids, max_tokens=6).tokens
    ids = random_prompt(500, 99)
    ((tokens, report),) = run(llm, [ids], greedy(12))
    assert report["status"] == "compressed"
    assert tokens == want(ids, 0.4).tokens
