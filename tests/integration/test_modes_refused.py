"""Engine settings and an engine's life beside the defaults, and what cannot run or is left alone.

The live engine is tested twice: as vLLM schedules on a CPU, and with the asynchronous scheduling
of GPUs, which is forced on here. References are computed with transformers alone.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.params import Untouched, plan_request
from tests.engines import engine, random_prompt, scheduler_of
from tests.integration.generate import greedy, run
from tests.reference import Reference

IDS, STEPS = random_prompt(500, 1), 12
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


SPECULATIVE = """
import json, sys
from qm_vllm import QuickMergeConfig
from tests.engines import engine, random_prompt
from tests.integration.generate import greedy, run

ids, steps = json.loads(sys.argv[2])
ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3,
         "prompt_lookup_min": 1}
with engine(sys.argv[1], QuickMergeConfig(ratio=0.4), speculative_config=ngram,
            skip_tokenizer_init=True) as llm:
    ways = [{"ratio": 0.4}, {"delivery": "prefill", "ratio": 1.0},
            {"delivery": "prefill", "details": True}]
    answers = [run(llm, [ids], greedy(steps, **way))[0] for way in ways]
    loop = greedy(24, delivery="prefill")
    loop.allowed_token_ids = [10]
    llm.llm_engine.add_request("loop", {"prompt_token_ids": ids}, loop)
    count = 0
    while llm.llm_engine.has_unfinished_requests():
        count += len(llm.llm_engine.step())
print("RESULT " + json.dumps([answers, count]))
"""


def test_ngram_speculation_works_with_the_prefill_delivery(tiny_models, want):
    """In a process of its own: numba, which it loads, breaks the next start of a CPU engine."""
    done = subprocess.run(
        [sys.executable, "-c", SPECULATIVE, str(tiny_models("llama")), json.dumps([IDS, STEPS])],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers, parts = json.loads(done.stdout.rpartition("RESULT ")[2])
    (inject, untouched), (full, _), (short, report) = answers
    assert untouched["status"] == "untouched"
    assert untouched["reason"] == 'speculative decoding is on; use delivery="prefill"'
    assert inject == full == want(IDS).tokens
    kept = want(IDS, 0.4, block_size=1).kept
    assert report["details"]["kept_indices"] == kept
    assert short == want([IDS[i] for i in kept]).tokens
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
    """The engine, and afterwards nothing may be left in it."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    scheduler = scheduler_of(llm)
    scheduler.reset_prefix_cache(reset_connector=True)
    pool = scheduler.kv_cache_manager.block_pool
    idle = pool.get_num_free_blocks()
    yield llm
    run(llm, [random_prompt(8, 0)], greedy(2))  # one more step delivers the last releases
    side = scheduler.connector.scheduler_side
    assert not side.tracked
    assert not side.board.entries
    assert not side.board.queue
    assert not get_kv_transfer_group().worker_side.jobs
    assert not scheduler.requests
    assert pool.get_num_free_blocks() == idle


def drain(llm):
    """Step until all is done: final outputs by request, in order of their ends."""
    done = {}
    while llm.llm_engine.has_unfinished_requests():
        for out in llm.llm_engine.step():
            if out.finished:
                done[out.request_id] = out
    return done


def drop_all_kv(llm, drop):
    """Run ``drop``; asynchronously, vLLM refuses it for the blocks of a step in flight.

    That is so with every connector that loads KV. Requests are waiting by then, and go on.
    """
    if llm.llm_engine.engine_core.engine_core.batch_queue is None:
        drop()
        return
    with contextlib.suppress(RuntimeError):
        drop()


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
    prompts = [random_prompt(620, seed) for seed in (20, 21, 22)]
    for name, ids in zip("abc", prompts, strict=True):
        add(live, name, ids)
    scheduler, preempted = scheduler_of(live), 0
    while not preempted:
        live.llm_engine.step()
        if len(scheduler.running) == 3:
            preempted = len(scheduler.running)
            drop_all_kv(live, lambda: scheduler.reset_prefix_cache(reset_running_requests=True))
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
@pytest.mark.parametrize("mode", ["new", "keep"])
def test_a_paused_engine_goes_on_where_it_stopped(live, want, mode, steps):
    """Paused while the job runs and while tokens come; "keep" also drops all KV."""
    from vllm.v1.core.sched.interface import PauseState

    core, scheduler = live.llm_engine.engine_core.engine_core, scheduler_of(live)
    add(live, "r")
    for _ in range(steps):
        live.llm_engine.step()
    (tracked,) = scheduler.connector.scheduler_side.tracked.values()
    assert tracked.pending is (steps == 2)
    if mode == "keep":
        drop_all_kv(live, lambda: core.pause_scheduler(mode="keep", clear_cache=True))
    else:
        scheduler.set_pause_state(PauseState.PAUSED_NEW)
    add(live, "late", random_prompt(300, 3))
    seen = [out.request_id for _ in range(30) for out in live.llm_engine.step()]
    assert "late" not in seen
    core.resume_scheduler()
    done = drain(live)
    assert list(done["late"].outputs[0].token_ids) == want(random_prompt(300, 3), 0.4).tokens
    if "r" in done:
        assert list(done["r"].outputs[0].token_ids) == want(IDS, 0.4).tokens
        assert done["r"].kv_transfer_params["quickmerge"]["status"] == "compressed"
    else:
        assert (mode, steps) == ("new", 14)
        assert seen.count("r") >= 1


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
