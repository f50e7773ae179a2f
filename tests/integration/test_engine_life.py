"""An engine's life: preemption, aborts, pause, sleep, priorities, sessions; nothing stays behind.

Tested twice: as vLLM schedules on a CPU, and with the asynchronous scheduling of GPUs, which is
forced on on a CPU. What ``test_native_life.py`` does not do with prompts that vLLM prefills is done
here with both deliveries. References are computed with transformers alone.
"""

from __future__ import annotations

import pytest

from qm_vllm import QuickMergeConfig
from tests.engines import engine, forced_async, random_prompt, scheduler_of
from tests.integration.generate import greedy, run
from tests.native_reference import NativeReference

IDS, LATE, STEPS = random_prompt(500, 1), random_prompt(300, 3), 12
DELIVERIES = ("inject", "native", "prefill")
OPTIONS = {"skip_tokenizer_init": True}


@pytest.fixture(scope="module", params=["sync", "async"])
def llm(request, tiny_models):
    from vllm.platforms import current_platform

    ahead = request.param == "async"
    with forced_async(ahead), engine(
        tiny_models("llama"), QuickMergeConfig(ratio=0.4, encoder_chunk_tokens=64, head_share=0.0),
        enable_chunked_prefill=False, max_num_batched_tokens=4096, max_num_seqs=8,
        scheduling_policy="priority", enable_prompt_embeds=True,
        async_scheduling=ahead and not current_platform.is_cpu(), **OPTIONS,
    ) as llm:
        core = llm.llm_engine.engine_core.engine_core
        assert (core.batch_queue is not None) is ahead
        yield llm


@pytest.fixture(scope="module")
def native(tiny_models):
    """``native(ids)``: tokens after vLLM's own prefill, as many as rounding does not decide."""
    reference = NativeReference(str(tiny_models("llama")))

    def get(ids):
        found = reference.generate(
            ids, block_size=32, max_tokens=STEPS, ratio=0.4, special=(0, 1, 2), first=True
        )
        return found.tokens[: found.decided()]

    return get


@pytest.fixture(params=["inject", "native"])
def delivery(request):
    return request.param


@pytest.fixture
def check(delivery, want, native):
    """``check(tokens, ids)``: they are those of the reference for this delivery."""

    def equal(tokens, ids):
        if delivery == "inject":
            assert list(tokens) == want(ids, 0.4).tokens
        else:
            decided = native(ids)
            assert len(tokens) == STEPS
            assert list(tokens)[: len(decided)] == decided

    return equal


def drain(llm):
    """Step until all is done: final outputs by request, in order of their ends."""
    done = {}
    for _ in range(1000):  # an engine that a failed test left paused has nothing to say
        if not llm.llm_engine.has_unfinished_requests():
            return done
        for out in llm.llm_engine.step():
            if out.finished:
                done[out.request_id] = out
    raise AssertionError("requests are left after 1000 steps")


def add(llm, name, ids=IDS, priority=0, **extra):
    params = greedy(STEPS, **extra)
    llm.llm_engine.add_request(name, {"prompt_token_ids": ids}, params, priority=priority)


def test_whole_prefills_equal_the_reference(live, want, native):
    settings = live.llm_engine.vllm_config.scheduler_config
    assert not settings.enable_chunked_prefill
    ways = [
        {"enabled": False}, *({"ratio": 1.0, "delivery": way} for way in DELIVERIES),
        {"delivery": "inject"}, {"delivery": "native"},
    ]
    got = run(live, [IDS] * len(ways), [greedy(STEPS, **way) for way in ways])
    tokens, reports = zip(*got, strict=True)
    assert list(tokens[:4]) == [want(IDS).tokens] * 4
    assert tokens[4] == want(IDS, 0.4).tokens
    decided = native(IDS)
    assert len(decided) > STEPS // 2
    assert tokens[5][: len(decided)] == decided
    assert [report["status"] for report in reports] == ["untouched"] + ["compressed"] * 5
    assert [report["delivery"] for report in reports[1:]] == [*DELIVERIES, "inject", "native"]


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


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("mode", ["PAUSED_NEW", "PAUSED_ALL"])
def test_a_paused_engine_goes_on_where_it_stopped(live, delivery, check, mode, begun):
    """Paused while the job runs and while tokens come; PAUSED_ALL also loses all KV."""
    from vllm.v1.core.sched.interface import PauseState

    core, scheduler = live.llm_engine.engine_core.engine_core, scheduler_of(live)
    add(live, "r", delivery=delivery)
    # A whole prefill by vLLM is one step, and its result comes with the next.
    seen = [out for _ in range(1 if delivery == "native" else 2) for out in live.llm_engine.step()]
    (tracked,) = scheduler.connector.scheduler_side.tracked.values()
    assert tracked.pending
    while begun and len(seen) < 4:
        seen += live.llm_engine.step()
    assert tracked.pending is not begun
    scheduler.set_pause_state(PauseState[mode])
    add(live, "late", LATE, delivery=delivery)
    seen += [out for _ in range(30) for out in live.llm_engine.step()]
    assert {out.request_id for out in seen} <= {"r"}
    assert any(out.finished for out in seen) is (mode == "PAUSED_NEW" and begun)
    if mode == "PAUSED_ALL":
        core._finish_pause(clear_cache=True)
    core.resume_scheduler()
    done = {out.request_id: out for out in seen if out.finished} | drain(live)
    for name, ids in (("r", IDS), ("late", LATE)):
        check(done[name].outputs[0].token_ids, ids)
        assert done[name].kv_transfer_params["quickmerge"]["status"] == "compressed"


@pytest.mark.parametrize("level", [0, 1, 2])
def test_sleep_and_wake_up(live, delivery, check, level):
    """On a CPU memory stays; requests stop, and from level 1 on results are forgotten."""
    check(run(live, [IDS], greedy(STEPS, delivery=delivery))[0][0], IDS)
    live.sleep(level=level)
    add(live, "r", delivery=delivery)
    told = [list(out.outputs[0].token_ids) for _ in range(10) for out in live.llm_engine.step()]
    if delivery == "native" and level == 0:
        # A first token that is remembered needs no step of the model, so it may be told at once.
        assert list(map(len, told)) in ([], [1])
    else:
        assert not told
    live.wake_up(["scheduling"] if level == 0 else None)
    done = drain(live)["r"]
    check(done.outputs[0].token_ids, IDS)
    assert done.kv_transfer_params["quickmerge"]["cached"] is (level == 0)


def in_one_place(llm, monkeypatch, prompts, way):
    """What ends, in order, of requests a, b and the more urgent c that share one place to run."""
    scheduler = scheduler_of(llm)
    monkeypatch.setattr(scheduler, "max_num_running_reqs", 1)
    monkeypatch.setattr(scheduler, "max_num_active_reqs", 1)
    for name, ids, priority in zip("abc", prompts, (5, 5, 0), strict=True):
        add(llm, name, ids, priority, delivery=way)
    return drain(llm)


@pytest.mark.parametrize("way", DELIVERIES)
def test_priorities_order_requests_that_are_ready(live, monkeypatch, way):
    """One place to run in: the most urgent of three whose job is known goes first."""
    prompts = [random_prompt(400, seed) for seed in (40, 41, 42)]
    params = greedy(STEPS, delivery=way)
    before = run(live, prompts, params)
    done = in_one_place(live, monkeypatch, prompts, way)
    assert list(done) == ["c", "a", "b"]
    assert [list(done[name].outputs[0].token_ids) for name in "abc"] == [t for t, _ in before]


@pytest.mark.parametrize("way", DELIVERIES)
def test_priorities_order_the_jobs_of_new_prompts(live, monkeypatch, way):
    """Prefills for them, too: the most urgent one is answered before the others."""
    prompts = [random_prompt(800, seed) for seed in (50, 51, 52)]
    done = in_one_place(live, monkeypatch, prompts, way)
    assert list(done) == ["c", "a", "b"]
    reports = [out.kv_transfer_params["quickmerge"] for out in done.values()]
    assert [report["status"] for report in reports] == ["compressed"] * 3


def test_prompt_embeddings_are_left_alone(live, tiny_models, want, delivery):
    from safetensors.torch import load_file

    table = load_file(tiny_models("llama") / "model.safetensors")["model.embed_tokens.weight"]
    params = greedy(STEPS, delivery=delivery)
    (out,) = live.generate([{"prompt_embeds": table[IDS]}], params, use_tqdm=False)
    assert list(out.outputs[0].token_ids) == want(IDS).tokens
    report = out.kv_transfer_params["quickmerge"]
    assert report["status"] == "untouched"
    assert report["reason"] == "the prompt has embeddings instead of token ids"


def test_streaming_input_sessions_are_left_alone(live, want, delivery):
    """Two parts of a prompt that grows, sent as AsyncLLM sends them."""
    core = live.llm_engine
    for ids, more in ((IDS, True), (LATE, True), ([5], False)):
        front, back = (
            core.input_processor.process_inputs(
                "s", {"prompt_token_ids": list(ids)}, greedy(STEPS, delivery=delivery),
                resumable=more, supported_tasks=("generate",),
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
