"""Engine settings and an engine's life beside the defaults, and what cannot run or is left alone.

The live engine is tested twice: as vLLM schedules on a CPU, and with the asynchronous scheduling
of GPUs, which is forced on here. References are computed with transformers alone.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.params import Untouched, plan_request
from tests.engines import engine, random_prompt, scheduler_of
from tests.integration.generate import greedy, run
from tests.integration.test_modes import left_empty
from tests.reference import Reference

IDS, LATE, STEPS = random_prompt(500, 1), random_prompt(300, 3), 12
OPTIONS = {"skip_tokenizer_init": True}


@pytest.fixture(scope="module")
def want(tiny_models):
    """``want(ids, ratio)``: kept indices and greedy tokens by transformers; 1.0 is plain."""
    reference = Reference(str(tiny_models("llama")))

    def get(ids, ratio=1.0, block_size=32, max_tokens=STEPS):
        return reference.generate(
            ids, ratio=ratio, block_size=block_size, max_tokens=max_tokens, E=4,
            score_layers=(1, 2), special=frozenset({0, 1, 2}),
        )

    return get


# --- what vLLM refuses on a CPU, and what is left alone ------------------------------------------
def test_model_runner_v2_needs_triton(tiny_models, monkeypatch):
    from vllm.triton_utils import HAS_TRITON

    if HAS_TRITON:
        pytest.skip("this machine has a Triton: Model Runner V2 could run and was not tried")
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with (
        pytest.raises(ValueError, match="Model Runner V2 requires Triton"),
        engine(tiny_models("llama"), QuickMergeConfig(), **OPTIONS),
    ):
        pass


def test_sleep_mode_is_refused_by_vllm_on_a_cpu(tiny_models):
    with (
        pytest.raises(ValueError, match="Sleep mode is not supported"),
        engine(tiny_models("llama"), QuickMergeConfig(), enable_sleep_mode=True, **OPTIONS),
    ):
        pass


def test_fp8_kv_cache_needs_avx512_on_a_cpu(tiny_models):
    import torch
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown

    if torch.cpu._is_avx512_supported() or torch.cpu._is_amx_tile_supported():
        pytest.skip("this CPU could hold an fp8 KV cache, which was not tried")
    try:
        with (
            pytest.raises(NotImplementedError, match="requires x86 with AVX-512 or AMX"),
            engine(tiny_models("llama"), QuickMergeConfig(), kv_cache_dtype="fp8", **OPTIONS),
        ):
            pass
    finally:
        ensure_kv_transfer_shutdown()
        cleanup_dist_env_and_memory(shutdown_ray=False)


def test_images_and_sound_leave_a_prompt_alone():
    from vllm import SamplingParams
    from vllm.v1.request import Request

    request = Request("r", IDS, SamplingParams(max_tokens=1), None, mm_features=[object()])
    with pytest.raises(Untouched, match="images, audio or video") as why:
        plan_request(request, QuickMergeConfig(), SimpleNamespace(max_source_tokens=4096))
    assert why.value.kind == "multimodal"


@pytest.fixture
def no_numba(monkeypatch):
    """numba in plain Python: once the real one is loaded, no CPU engine starts any more."""

    def compiled(*_, **__):
        return lambda function: function

    fake = ModuleType("numba")
    fake.__spec__ = ModuleSpec("numba", None)
    names = {"jit": compiled, "njit": compiled, "prange": range}
    names |= {"get_num_threads": lambda: 1, "set_num_threads": lambda count: None}
    vars(fake).update(names)
    monkeypatch.setitem(sys.modules, "numba", fake)
    yield
    sys.modules.pop("vllm.v1.spec_decode.ngram_proposer", None)


def test_ngram_speculation_works_with_the_prefill_delivery(tiny_models, want, no_numba):
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3,
             "prompt_lookup_min": 1}
    prefill, loop = {"delivery": "prefill"}, greedy(24, delivery="prefill")
    loop.allowed_token_ids = [10]
    with engine(
        tiny_models("llama"), QuickMergeConfig(ratio=0.4), speculative_config=ngram, **OPTIONS
    ) as llm:
        inject, full, short = (
            run(llm, [IDS], greedy(STEPS, **way))[0]
            for way in ({"ratio": 0.4}, {"ratio": 1.0, **prefill}, {"details": True, **prefill})
        )
        llm.llm_engine.add_request("loop", {"prompt_token_ids": IDS}, loop)
        parts = 0
        while llm.llm_engine.has_unfinished_requests():
            parts += len(llm.llm_engine.step())
    assert inject[1]["status"] == "untouched"
    assert inject[1]["reason"] == 'speculative decoding is on; use delivery="prefill"'
    assert inject[0] == full[0] == want(IDS).tokens
    assert full[1]["status"] == "compressed"
    kept = want(IDS, 0.4, block_size=1).kept
    assert short[1]["details"]["kept_indices"] == kept
    assert short[0] == want([IDS[i] for i in kept]).tokens
    assert parts < 24  # a loop of one token: drafts were accepted


# --- a live engine ----------------------------------------------------------------------------
@pytest.fixture(scope="module", params=["sync", "async"])
def llm(request, tiny_models):
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.check_and_update_config.__func__

    def forced(platform, config):
        original(platform, config)
        config.scheduler_config.async_scheduling = True

    with pytest.MonkeyPatch.context() as patch:
        if request.param == "async":
            patch.setattr(CpuPlatform, "check_and_update_config", classmethod(forced))
        with engine(
            tiny_models("llama"), QuickMergeConfig(ratio=0.4, encoder_chunk_tokens=64),
            enable_chunked_prefill=False, max_num_batched_tokens=4096, max_num_seqs=8,
            scheduling_policy="priority", enable_prompt_embeds=True, **OPTIONS,
        ) as llm:
            core = llm.llm_engine.engine_core.engine_core
            assert (core.batch_queue is not None) is (request.param == "async")
            yield llm


@pytest.fixture
def live(llm):
    with left_empty(llm):
        yield llm


def drain(llm):
    """Step until all is done: final outputs by request, in order of their ends."""
    done = {}
    while llm.llm_engine.has_unfinished_requests():
        for out in llm.llm_engine.step():
            if out.finished:
                done[out.request_id] = out
    return done


def add(llm, name, ids=IDS, priority=0, **extra):
    params = greedy(STEPS, **extra)
    llm.llm_engine.add_request(name, {"prompt_token_ids": ids}, params, priority=priority)


def test_whole_prefills_equal_the_reference(live, want):
    settings = live.llm_engine.vllm_config.scheduler_config
    assert not settings.enable_chunked_prefill
    ways = [{"enabled": False}, {"ratio": 1.0}, {"ratio": 1.0, "delivery": "prefill"}, {}]
    got = run(live, [IDS] * 4, [greedy(STEPS, **way) for way in ways])
    assert [tokens for tokens, _ in got[:3]] == [want(IDS).tokens] * 3
    assert got[3][0] == want(IDS, 0.4).tokens
    assert [r["status"] for _, r in got] == ["untouched"] + ["compressed"] * 3


def test_preempted_requests_give_the_same_tokens(live, want):
    """With a step in flight vLLM cannot drop the blocks of requests that a connector loads."""
    prompts = [random_prompt(620, seed) for seed in (20, 21, 22)]
    for name, ids in zip("abc", prompts, strict=True):
        add(live, name, ids)
    scheduler = scheduler_of(live)
    while len(scheduler.running) < 3:
        live.llm_engine.step()
    if live.llm_engine.engine_core.engine_core.batch_queue:
        with pytest.raises(RuntimeError, match="Failed to reset KV cache"):
            scheduler.reset_prefix_cache(reset_running_requests=True)
    else:
        assert scheduler.reset_prefix_cache(reset_running_requests=True)
    assert not scheduler.running
    done = drain(live)
    for name, ids in zip("abc", prompts, strict=True):
        assert list(done[name].outputs[0].token_ids) == want(ids, 0.4).tokens


@pytest.mark.parametrize("steps", [1, 4, 14])
def test_aborted_requests_leave_nothing(live, steps):
    add(live, "gone", random_prompt(900, 15))
    for _ in range(steps):
        live.llm_engine.step()
    live.llm_engine.abort_request(["gone"])
    assert run(live, [random_prompt(400, 16)], greedy(4))[0][1]["status"] == "compressed"


@pytest.mark.parametrize("steps", [2, 14])
@pytest.mark.parametrize("mode", ["PAUSED_NEW", "PAUSED_ALL"])
def test_a_paused_engine_goes_on_where_it_stopped(live, want, mode, steps):
    """Paused while the job runs and while tokens come; PAUSED_ALL also loses all KV."""
    from vllm.v1.core.sched.interface import PauseState

    core, scheduler = live.llm_engine.engine_core.engine_core, scheduler_of(live)
    add(live, "r")
    seen = [out for _ in range(steps) for out in live.llm_engine.step()]
    (tracked,) = scheduler.connector.scheduler_side.tracked.values()
    assert tracked.pending is (steps == 2)
    scheduler.set_pause_state(PauseState[mode])
    add(live, "late", LATE)
    seen += [out for _ in range(30) for out in live.llm_engine.step()]
    assert {out.request_id for out in seen} <= {"r"}
    assert any(out.finished for out in seen) is (mode == "PAUSED_NEW" and steps == 14)
    if mode == "PAUSED_ALL":
        core._finish_pause(clear_cache=True)
    core.resume_scheduler()
    done = {out.request_id: out for out in seen if out.finished} | drain(live)
    for name, ids in (("r", IDS), ("late", LATE)):
        assert list(done[name].outputs[0].token_ids) == want(ids, 0.4).tokens
        assert done[name].kv_transfer_params["quickmerge"]["status"] == "compressed"


@pytest.mark.parametrize("level", [0, 1, 2])
def test_sleep_and_wake_up(live, want, level):
    """On a CPU memory stays; requests stop, and from level 1 on results are forgotten."""
    assert run(live, [IDS], greedy(STEPS))[0][0] == want(IDS, 0.4).tokens
    live.sleep(level=level)
    add(live, "r")
    assert not any(live.llm_engine.step() for _ in range(10))
    live.wake_up(["scheduling"] if level == 0 else None)
    done = drain(live)["r"]
    assert list(done.outputs[0].token_ids) == want(IDS, 0.4).tokens
    assert done.kv_transfer_params["quickmerge"]["cached"] is (level == 0)


def test_priorities_order_requests_that_are_ready(live, monkeypatch):
    """One place to run in: the most urgent of three whose job is known goes first."""
    prompts = [random_prompt(400, seed) for seed in (40, 41, 42)]
    params = greedy(STEPS, delivery="prefill")
    before = run(live, prompts, params)
    scheduler = scheduler_of(live)
    monkeypatch.setattr(scheduler, "max_num_running_reqs", 1)
    monkeypatch.setattr(scheduler, "max_num_active_reqs", 1)
    for name, ids, priority in zip("abc", prompts, (5, 5, 0), strict=True):
        add(live, name, ids, priority, delivery="prefill")
    done = drain(live)
    assert list(done) == ["c", "a", "b"]
    assert [list(done[name].outputs[0].token_ids) for name in "abc"] == [t for t, _ in before]


def test_prompt_embeddings_are_left_alone(live, tiny_models, want):
    from safetensors.torch import load_file

    table = load_file(tiny_models("llama") / "model.safetensors")["model.embed_tokens.weight"]
    (out,) = live.generate([{"prompt_embeds": table[IDS]}], greedy(STEPS), use_tqdm=False)
    assert list(out.outputs[0].token_ids) == want(IDS).tokens
    report = out.kv_transfer_params["quickmerge"]
    assert report["status"] == "untouched"
    assert report["reason"] == "the prompt has embeddings instead of token ids"


def test_streaming_input_sessions_are_left_alone(live, want):
    """Two parts of a prompt that grows, sent as AsyncLLM sends them."""
    core = live.llm_engine
    for ids, more in ((IDS, True), (LATE, True), ([5], False)):
        front, back = (
            core.input_processor.process_inputs(
                "s", {"prompt_token_ids": list(ids)}, greedy(STEPS), resumable=more,
                supported_tasks=("generate",),
            )
            for _ in range(2)
        )
        front.external_req_id = "s"
        core.output_processor.add_request(front, None)
        core.engine_core.add_request(back)
    last = [out for _ in range(60) for out in core.step()][-1]
    first = want(IDS).tokens
    assert list(last.outputs[0].token_ids) == first + want(IDS + first[:-1] + LATE).tokens
    report = last.kv_transfer_params["quickmerge"]
    assert report["reason"] == "streaming input sessions are not supported"
