"""Life of requests: bad options, caching, sharing, preemption, aborts, failures inside."""

from __future__ import annotations

import pytest

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.jobs.compression_job import CompressionJob
from tests.engines import engine, random_prompt, scheduler_of
from tests.integration.generate import greedy, run
from tests.integration.left_empty import left_empty


@pytest.fixture(scope="module")
def llm(tiny_models):
    config = QuickMergeConfig(ratio=0.4, max_live_jobs=2, encoder_chunk_tokens=64)
    with engine(tiny_models("llama"), config, skip_tokenizer_init=True) as llm:
        yield llm


@pytest.fixture(autouse=True)
def nothing_left_behind(llm):
    with left_empty(llm):
        yield


def worker_side():
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return get_kv_transfer_group().worker_side


def raw(extra_args, max_tokens=8, **more):
    params = greedy(max_tokens)
    params.extra_args = extra_args
    for name, value in more.items():
        setattr(params, name, value)
    return params


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"qm_ratio": 0.0}, ["ratio=0.0", "greater than 0"]),
        ({"qm_ratio": 1.5}, ["ratio=1.5", "at most 1"]),
        ({"qm_ratio": float("nan")}, ["ratio=nan"]),
        ({"qm_ratio": "much"}, ["ratio='much'", "number"]),
        ({"qm_max_kept": 10}, ["max_kept=10", "protected"]),
        ({"qm_max_kept": 50}, ["invalid option", "max_kept=50 is too small", "65 would be kept"]),
        ({"qm_saliency": "magic"}, ["saliency='magic'", "entropy"]),
        ({"qm_ration": 0.3}, ["'ration'", "ratio"]),
        ({"qm_encoder_layers": 99}, ["encoder_layers=99", "6 layers"]),
        ({"qm_encoder_chunk_tokens": 99}, ["encoder_chunk_tokens", "engine starts"]),
        ({"qm_protect_ranges": "[[0, 400]]", "qm_max_kept": 100}, ["max_kept=100", "protected"]),
        ({"kv_transfer_params": {"quickmerge": {"alpha": 2}}}, ["alpha=2", "at most 1"]),
    ],
)
def test_bad_options_leave_the_prompt_untouched_and_say_why(llm, extra, words):
    ids = random_prompt(500, 1)
    (plain, _), (tokens, report) = (
        run(llm, [ids], greedy(8, enabled=False))[0], run(llm, [ids], raw(extra))[0],
    )
    assert report["status"] == "untouched"
    for word in words:
        assert word in report["reason"], report["reason"]
    assert tokens == plain


@pytest.mark.parametrize("ids", [[5], [5, 6], random_prompt(255, 3)])
def test_short_prompts_pass(llm, ids):
    ((tokens, report),) = run(llm, [ids], greedy(5))
    assert len(tokens) == 5
    assert report["status"] == "untouched"
    assert "min_tokens" in report["reason"]


def test_empty_prompt_is_refused_and_the_engine_lives(llm):
    with pytest.raises(Exception, match="empty"):
        run(llm, [[]], greedy(2))
    assert run(llm, [random_prompt(300, 2)], greedy(2))[0][1]["status"] == "compressed"


def test_prompt_logprobs_are_left_alone(llm):
    params = greedy(4)
    params = raw(None, 4, prompt_logprobs=1, skip_reading_prefix_cache=True)
    ((_, report),) = run(llm, [random_prompt(400, 4)], params)
    assert report["status"] == "untouched"
    assert "prompt_logprobs" in report["reason"]


def test_http_style_options_are_read(llm):
    ids = random_prompt(500, 8)
    ((_, one),) = run(llm, [ids], raw({"qm_ratio": 0.25, "qm_query_visible": "false"}))
    ((_, two),) = run(
        llm, [ids], raw({"kv_transfer_params": {"quickmerge": {"ratio": 0.25}}})
    )
    assert one["saliency"] == "leverage"
    assert two["saliency"] == "query"
    assert one["kept_tokens"] == two["kept_tokens"] <= 125


def test_repeated_prompt_uses_the_prefix_cache_and_gives_the_same_tokens(llm):
    ids = random_prompt(640, 10)
    ((first, a),) = run(llm, [ids], greedy(12))
    ((second, b),) = run(llm, [ids], greedy(12))
    assert not a["cached"]
    assert b["cached"]
    assert first == second
    assert a["kept_tokens"] == b["kept_tokens"]
    scheduler_of(llm).reset_prefix_cache()  # blocks gone, memo still there: the job runs again
    ((third, c),) = run(llm, [ids], greedy(12))
    assert c["cached"]
    assert third == first


def test_injected_blocks_never_serve_an_ordinary_prompt(llm):
    ids = random_prompt(640, 11)
    ((_, report),) = run(llm, [ids], greedy(4, details=True))
    kept = [ids[i] for i in report["details"]["kept_indices"]]
    ((tokens, _),) = run(llm, [kept], greedy(12, enabled=False))
    scheduler_of(llm).reset_prefix_cache()
    ((fresh, _),) = run(llm, [kept], greedy(12, enabled=False))
    assert tokens == fresh


def test_equal_requests_share_one_job(llm, monkeypatch):
    started = []
    original = CompressionJob.__init__
    monkeypatch.setattr(
        CompressionJob, "__init__",
        lambda self, spec, *rest: (started.append(spec.key), original(self, spec, *rest))[1],
    )
    results = run(llm, [random_prompt(500, 12)] * 4, greedy(8))
    assert len(started) == 1
    assert all(tokens == results[0][0] for tokens, _ in results)


def test_a_failing_job_falls_back_to_plain_prefill(llm, monkeypatch):
    ids = random_prompt(500, 13)
    ((plain, _),) = run(llm, [ids], greedy(8, enabled=False))

    def broken(self, evidence):
        raise ArithmeticError("a broken score")

    monkeypatch.setattr(CompressionJob, "_choose", broken)
    ((tokens, report),) = run(llm, [ids], greedy(8))
    assert report["status"] == "untouched"
    assert "a broken score" in report["reason"]
    assert tokens == plain


def test_a_failing_delivery_fails_one_request_only(llm, monkeypatch):
    from qm_vllm_patches.kv_cache import PagedCache

    def broken(*args):
        raise ArithmeticError("no write")

    whole = greedy(8, ratio=1.0)  # its last positions are copied: they do not fill a block
    with monkeypatch.context() as patch:
        patch.setattr(PagedCache, "copy", broken)
        ((tokens, _),) = run(llm, [random_prompt(500, 14)], whole)
        assert tokens == []
    ((tokens, report),) = run(llm, [random_prompt(500, 14)], whole)
    assert len(tokens) == 8
    assert report["status"] == "compressed"


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_abort_frees_everything(llm, steps):
    pool = scheduler_of(llm).kv_cache_manager.block_pool
    idle = pool.get_num_free_blocks()
    ids = random_prompt(900, 15)
    llm.llm_engine.add_request("gone", {"prompt_token_ids": ids}, greedy(50))
    for _ in range(steps):
        llm.llm_engine.step()
    llm.llm_engine.abort_request(["gone"])
    ((_, report),) = run(llm, [random_prompt(400, 16)], greedy(4))
    assert report["status"] == "compressed"
    assert pool.get_num_free_blocks() == idle


def test_preemption_gives_the_same_tokens(llm):
    ids = [random_prompt(620, seed) for seed in (20, 21, 22)]
    undisturbed = run(llm, ids, greedy(120, ratio=0.5))
    scheduler = scheduler_of(llm)
    for name, prompt in zip("abc", ids, strict=True):
        llm.llm_engine.add_request(
            name, {"prompt_token_ids": prompt}, greedy(120, ratio=0.5)
        )
    finished, steps, preempted = {}, 0, 0
    while llm.llm_engine.has_unfinished_requests():
        steps += 1
        if steps in (40, 75):  # preempts every running request and drops its blocks
            preempted += len(scheduler.running)
            scheduler.reset_prefix_cache(reset_running_requests=True)
        for out in llm.llm_engine.step():
            if out.finished:
                finished[out.request_id] = list(out.outputs[0].token_ids)
    assert preempted >= 4
    got = [finished[name] for name in "abc"]
    assert got == [tokens for tokens, _ in undisturbed]


def test_a_redo_that_fails_after_preemption_recomputes_and_says_so(llm, monkeypatch):
    scheduler = scheduler_of(llm)
    ids = random_prompt(620, 30)
    llm.llm_engine.add_request("r", {"prompt_token_ids": ids}, greedy(30))
    while not any(request.num_output_tokens >= 5 for request in scheduler.running):
        llm.llm_engine.step()

    def broken(self, evidence):
        raise ArithmeticError("no redo")

    monkeypatch.setattr(CompressionJob, "_choose", broken)
    scheduler.reset_prefix_cache(reset_running_requests=True)
    final = None
    while llm.llm_engine.has_unfinished_requests():
        final = (llm.llm_engine.step() or [final])[0]
    report = final.kv_transfer_params["quickmerge"]
    assert len(final.outputs[0].token_ids) == 30
    assert "no redo" in report["notes"][0]


def test_parallel_samples_share_one_job(llm):
    params = greedy(8)
    params.n, params.temperature, params.seed = 3, 1.0, 7
    (output,) = llm.generate(
        [{"prompt_token_ids": random_prompt(500, 31)}], params, use_tqdm=False
    )
    assert len({tuple(choice.token_ids) for choice in output.outputs}) == 3
    assert output.kv_transfer_params["quickmerge"]["status"] == "compressed"


def test_layers_that_cannot_be_run_leave_the_embeddings_to_score(llm, monkeypatch):
    monkeypatch.setattr(worker_side(), "problem", "layer 3 uses a sliding window")
    ids = random_prompt(500, 32)
    ((_, report),) = run(llm, [ids], greedy(4))
    assert report["status"] == "untouched"
    assert "sliding window" in report["reason"]
    ((_, report),) = run(llm, [ids], greedy(4, delivery="prefill"))
    assert report["status"] == "compressed"
    assert report["encoder_layers"] == 0
    assert report["saliency"] == "entropy"
