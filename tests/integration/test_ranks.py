"""Two tensor-parallel ranks on a CPU: the same answers, and no rank is left waiting."""

from __future__ import annotations

import pytest

from qm_vllm import QuickMergeConfig, engine_args
from tests import native_reference
from tests.engines import engine, random_prompt
from tests.integration.failing_worker import STAGES
from tests.integration.generate import greedy, run
from tests.native_reference import NativeReference

CONFIG = QuickMergeConfig(ratio=0.4)
BLOCK_BYTES = 6 * 2 * 32 * 2 * 32 * 4
"""Layers, keys and values, tokens, KV heads of which each rank has one, their size, float32."""


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


@pytest.mark.parametrize("visible", [True, False], ids=["asked", "blind"])
def test_ranks_keep_the_same_of_a_prompt_that_vllm_prefills(llm, tiny_models, visible):
    """Each has half of the heads; what stays is chosen over all of them."""
    reference = NativeReference(str(tiny_models("llama")))
    prompts = [random_prompt(length, length) for length in (700, 300)]
    options = {"head_share": 0.0, "query_visible": visible}
    got = run(llm, prompts, greedy(12, delivery="native", details=True, **options))
    for ids, (tokens, report) in zip(prompts, got, strict=True):
        want = reference.generate(
            ids, block_size=32, max_tokens=12, ratio=0.4, special=(0, 1, 2), first=True, **options
        )
        assert report["status"] == "compressed", report
        want = want.of(report["details"]["kept_indices"])
        assert report["details"]["kept_indices"] == want.kept
        assert report["kv_bytes"] == report["kv_blocks"] * BLOCK_BYTES
        assert tokens[: want.decided()] == want.tokens[: want.decided()]


def test_heads_of_all_ranks_choose_as_those_of_one(llm, tiny_models, monkeypatch):
    """Which of them look things up is known over the heads of both.

    Some of the many tokens that heads keep rank alike, which after a while changes what follows.
    """
    reference = NativeReference(str(tiny_models("llama")))
    ids, options = random_prompt(700, 701), {"ratio": 0.4, "head_share": 0.5}
    ((tokens, report),) = run(llm, [ids], greedy(6, delivery="native", **options))
    assert report["status"] == "compressed", report
    ask = {"block_size": 32, "max_tokens": 6, "special": (0, 1, 2), "first": True, **options}
    want = reference.generate(ids, **ask)
    sure = want.decided(0.01)
    assert sure >= 3
    assert tokens[:sure] == want.tokens[:sure]
    # It would show if heads kept the same, or if all of them chose alike.
    assert reference.generate(ids, **{**ask, "head_share": 0.0}).tokens[:sure] != tokens[:sure]
    monkeypatch.setattr(native_reference, "LOOKING_UP_SHARE", 0.5)
    assert reference.generate(ids, **ask).tokens[:sure] != tokens[:sure]
