"""K < N in the real engine: equal to the transformers-only reference, and fewer blocks."""

from __future__ import annotations

import math

import pytest

from qm_vllm import QuickMergeConfig
from tests.engines import engine, random_prompt, scheduler_of
from tests.integration.generate import greedy, run
from tests.reference import Reference

BLOCK = 32


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def family_folder(request, tiny_models):
    return tiny_models(request.param)


@pytest.fixture(scope="module")
def llm(family_folder):
    config = QuickMergeConfig(ratio=0.4)
    with engine(family_folder, config, skip_tokenizer_init=True) as llm:
        yield llm


@pytest.fixture(scope="module")
def reference(family_folder):
    return Reference(str(family_folder))


@pytest.mark.parametrize("visible", [True, False])
@pytest.mark.parametrize(("length", "ratio"), [(400, 0.4), (700, 0.33), (1100, 0.25)])
def test_equals_transformers_reference(llm, reference, length, ratio, visible):
    ids = random_prompt(length, seed=length)
    want = reference.generate(
        ids, ratio=ratio, block_size=BLOCK, max_tokens=24, E=4, score_layers=(1, 2),
        query_visible=visible, special=frozenset(),
    )
    ((got, report),) = run(
        llm, [ids],
        greedy(24, ratio=ratio, query_visible=visible, delivery="inject", details=True),
    )
    assert report["status"] == "compressed", report
    assert report["details"]["kept_indices"] == want.kept
    assert got == want.tokens


def test_blocks_at_decode_time_come_from_k(llm):
    pool = scheduler_of(llm).kv_cache_manager.block_pool
    idle = pool.get_num_free_blocks()
    llm.llm_engine.add_request(
        "watched", {"prompt_token_ids": random_prompt(900, 9)}, greedy(40, ratio=0.3)
    )
    seen, final = [], None
    while llm.llm_engine.has_unfinished_requests():
        outputs = llm.llm_engine.step()
        request = next(iter(scheduler_of(llm).requests.values()), None)
        if request is not None and request.num_output_tokens:
            held = idle - pool.get_num_free_blocks()
            seen.append((held, request.num_prompt_tokens, request.num_output_tokens))
        final = outputs[0] if outputs else final
    report = final.kv_transfer_params["quickmerge"]
    kept = report["kept_tokens"]
    assert 0.25 * 900 < kept <= 0.3 * 900
    assert len(seen) >= 39
    for held, prompt, generated in seen:
        assert prompt == kept
        assert held == math.ceil((kept + generated - 1) / BLOCK)
    assert report["kv_blocks"] == math.ceil((kept + 40 - 1) / BLOCK)
    assert pool.get_num_free_blocks() == idle


def test_mixed_batch_equals_each_alone(llm):
    prompts = [random_prompt(n, 50 + n) for n in (500, 60, 800, 640, 300, 1000)]
    params = [
        greedy(20, ratio=0.3), greedy(20), greedy(20, enabled=False),
        greedy(20, ratio=0.5, query_visible=False), greedy(20, delivery="prefill"),
        greedy(20, alpha=0.3, max_kept=400),
    ]
    together = run(llm, prompts, params)
    scheduler_of(llm).reset_prefix_cache(reset_connector=True)
    statuses = [report["status"] for _, report in together]
    assert statuses == ["compressed", "untouched", "untouched"] + ["compressed"] * 3
    for ids, param, (tokens, report) in zip(prompts, params, together, strict=True):
        ((alone, alone_report),) = run(llm, [ids], param)
        assert tokens == alone
        assert report["kept_tokens"] == alone_report["kept_tokens"]


def test_prefill_delivery_is_a_plain_run_of_the_kept_ids(llm):
    ids = random_prompt(620, 77)
    ((got, report),) = run(llm, [ids], greedy(24, delivery="prefill", details=True))
    kept = report["details"]["kept_indices"]
    assert kept == sorted(set(kept))
    assert len(kept) == report["kept_tokens"] < 620
    ((want, _),) = run(llm, [[ids[i] for i in kept]], greedy(24, enabled=False))
    assert got == want


@pytest.mark.parametrize("merge", ["weighted", "select", "mean"])
@pytest.mark.parametrize("grouping", ["contiguous", "knn", "chain"])
def test_every_merge_and_grouping_runs(llm, merge, grouping):
    ids = random_prompt(420, 5)
    ((tokens, report),) = run(llm, [ids], greedy(4, merge=merge, grouping=grouping))
    assert report["status"] == "compressed", report
    assert len(tokens) == 4
    assert (report["reconstruction_error"] > 0)
    assert 0 < report["gamma"] < 1


@pytest.mark.parametrize("saliency", ["query", "entropy", "norm", "ned"])
def test_every_saliency_runs(llm, saliency):
    ((_, report),) = run(llm, [random_prompt(420, 6)], greedy(4, saliency=saliency))
    assert report["status"] == "compressed", report
    assert report["saliency"] == saliency
