"""Our connector beside vLLM's offloading connector: who stores what, and who finds it again."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import contextmanager

import pytest
from vllm.distributed.kv_transfer import get_kv_transfer_group
from vllm.v1.kv_offload.base import make_offload_key

from qm_vllm import QuickMergeConfig, engine_args
from qm_vllm.layers import WINDOW_QUERIES
from qm_vllm_eval.serving.host_memory import offloading
from tests.engines import engine, forced_async, random_prompt, scheduler_of
from tests.families import make_model
from tests.integration.generate import greedy, run
from tests.integration.preempting import preempt
from tests.native_reference import NativeReference

BLOCK, STEPS = 32, 12
IDS = random_prompt(701, 3)
CONFIG = QuickMergeConfig(ratio=0.4, head_share=0.0)
LOADED = "vllm:kv_offload_load_bytes"
WAYS = [
    {"delivery": "native"}, {}, {"enabled": False}, {"delivery": "native", "ratio": 0.2},
    {"delivery": "prefill"},
]


@contextmanager
def in_company(folder, ahead, blocks, config=CONFIG):
    """An engine with host memory beside ours, and too few blocks for many prompts."""
    with forced_async(ahead), engine(
        folder, skip_tokenizer_init=True, max_num_batched_tokens=256, max_num_seqs=8,
        num_gpu_blocks_override=blocks, max_model_len=1280, disable_log_stats=False,
        async_scheduling=ahead, **engine_args(config, [offloading()]),
    ) as llm:
        yield llm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model("llama", tmp_path_factory.mktemp("company"))


@pytest.fixture(scope="module", params=["sync", "async"])
def llm(request, folder):
    """Steps that wait for their tokens; and asynchronous scheduling, as on a GPU."""
    with in_company(folder, request.param == "async", blocks=72) as llm:
        yield llm


@pytest.fixture
def alone(live):
    """The answer to a prompt of which nothing can be found, because of its salt."""
    def get(ids, params):
        prompt = {"prompt_token_ids": ids, "cache_salt": "alone"}
        (out,) = live.generate([prompt], params, use_tqdm=False)
        return out

    return get


def forget(llm):
    """The device's cache alone: host memory and what is remembered stay."""
    assert scheduler_of(llm).reset_prefix_cache()


def counts(llm):
    """Of both connectors and of the engine, by the names of vLLM's metrics."""
    found = Counter()
    for one in llm.get_metrics():
        found[one.name] += getattr(one, "value", 0)
    return found


def figures(out):
    """Log probabilities of what was sampled."""
    tokens = zip(out.outputs[0].token_ids, out.outputs[0].logprobs, strict=True)
    return [places[token].logprob for token, places in tokens]


def test_a_document_comes_back_from_host_memory(live, folder):
    """All but what its prefill must see; what stays is what a computation without caches keeps."""
    want = NativeReference(str(folder)).generate(
        IDS, block_size=BLOCK, max_tokens=STEPS, ratio=0.4, special=(0, 1, 2), first=True
    )
    for _ in range(2):
        params = greedy(STEPS, delivery="native", details=True)
        ((tokens, report),) = run(live, [IDS], params)
        assert report["details"]["kept_indices"] == want.kept
        assert tokens[: want.decided()] == want.tokens[: want.decided()]
        forget(live)
    most = (len(IDS) - WINDOW_QUERIES) // BLOCK * BLOCK
    assert report["prefill_cached_tokens"] == most


@pytest.mark.parametrize("delivery", ["native", "inject"])
def test_a_result_comes_back_from_host_memory(live, folder, delivery):
    """And without a job; the same ids as a plain prompt do not find it."""
    ((_, report),) = run(live, [IDS], greedy(1, delivery=delivery, details=True))
    kept = [IDS[place] for place in report["details"]["kept_indices"]]
    # One that is remembered in the device's cache is the measure of one that comes back.
    run(live, [IDS], greedy(1, delivery=delivery))
    side_of(live).memo.forget_answers()
    ((want, _),) = run(live, [IDS], greedy(STEPS, delivery=delivery))
    before = counts(live)
    forget(live)
    ((tokens, report),) = run(live, [IDS], greedy(STEPS, delivery=delivery))
    after = counts(live)
    assert report["cached"]
    assert tokens == want
    assert after["qm_vllm:jobs"] == before["qm_vllm:jobs"]
    assert after[LOADED] > before[LOADED]
    forget(live)
    run(live, [kept], greedy(STEPS, enabled=False))
    assert counts(live)[LOADED] == after[LOADED]


def add(llm, name, ids, max_tokens, **options):
    llm.llm_engine.add_request(name, {"prompt_token_ids": ids}, greedy(max_tokens, **options))


def side_of(llm):
    return scheduler_of(llm).connector.sub_connectors[0].scheduler_side


def until(llm, there, most=300):
    """Steps of the engine until something is there."""
    for _ in range(most):
        if there():
            return
        llm.llm_engine.step()
    raise AssertionError(f"not there after {most} steps")


def storm(llm, prompts, requests, seed, streams=32):
    """So many requests, of which some are aborted: answers of those that ended, by name."""
    pick, done, live, asked, doomed = random.Random(seed), {}, {}, 0, {}
    for _ in range(10_000):
        if not live and asked == requests:
            return done
        while len(live) < streams and asked < requests:
            name, which = f"{seed}.{asked}", pick.randrange(len(prompts))
            way = pick.choice(WAYS)
            add(llm, name, prompts[which], pick.randint(1, 40), **way)
            live[name] = which, WAYS.index(way)
            if pick.random() < 0.15:
                doomed[name] = pick.randint(0, 60)  # steps
            asked += 1
        for name in [name for name in doomed if name in live]:
            doomed[name] -= 1
            if doomed[name] < 0:
                llm.llm_engine.abort_request([name])
                del live[name]
        if pick.random() < 0.01:
            scheduler_of(llm).reset_prefix_cache()
        for out in llm.llm_engine.step():
            if out.finished and out.request_id in live:
                done[out.request_id] = (*live.pop(out.request_id), out)
    raise AssertionError(f"nothing moves: {side_of(llm).board}, {scheduler_of(llm).requests}")


def test_aborts_and_preemption_leave_both_what_they_had(live, folder, alone):
    """32 streams, too few blocks for them: all are answered, and host memory holds what it says."""
    prompts = [random_prompt(200 + 61 * number, number) for number in range(14)]
    before = counts(live)
    done = storm(live, prompts, 100, seed=1)
    assert len(done) > 60
    assert all(out.outputs[0].finish_reason == "length" for _, _, out in done.values())
    after = counts(live)
    assert after["vllm:num_preemptions"] > before["vllm:num_preemptions"]
    forget(live)
    params = greedy(2, enabled=False)
    params.logprobs = 1
    stored = live.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    assert counts(live)[LOADED] > after[LOADED]
    for ids, out in zip(prompts, stored, strict=True):
        assert figures(out) == pytest.approx(figures(alone(ids, params)), abs=2e-5)


def test_blocks_that_a_job_takes_are_stored_first(live, folder, alone):
    """A request has ended, its last blocks are not stored yet, and a job writes into them."""
    ours, other = get_kv_transfer_group().sub_connectors
    store = scheduler_of(live).connector.sub_connectors[0].store
    prompts = [random_prompt(500, 50), random_prompt(8, 51)]
    add(live, "ends", prompts[0], 1, enabled=False)
    until(live, lambda: not live.llm_engine.has_unfinished_requests())
    taken = store.take(store.free - 4)
    begin = ours.worker_side.begin

    def overwrite(message):
        for blocks in other.connector_worker.worker.device:
            blocks[taken] = 0
        begin(message)

    ours.worker_side.begin = overwrite
    run(live, prompts[1:], greedy(2, enabled=False))
    ours.worker_side.begin = begin
    store.give_back(taken)
    forget(live)
    before = counts(live)
    params = greedy(2, enabled=False)
    params.logprobs = 1
    (out,) = live.generate([{"prompt_token_ids": prompts[0]}], params, use_tqdm=False)
    assert counts(live)[LOADED] > before[LOADED]
    assert figures(out) == pytest.approx(figures(alone(prompts[0], params)), abs=2e-5)


def test_keys_of_host_memory_are_those_of_what_a_request_has(live, monkeypatch):
    """Also where it was chosen for again, or its result could not be made a second time."""
    other = scheduler_of(live).connector.sub_connectors[1].connector_scheduler
    build, seen = other._build_store_jobs, []

    def watched(output):
        for name in (*output.num_scheduled_tokens, *output.finished_req_ids):
            status = other._req_status.get(name)  # none of one that has ended before
            for group, state in enumerate(() if status is None else status.group_states):
                want = [make_offload_key(one, group) for one in status.req.block_hashes]
                assert state.offload_keys == want[: len(state.offload_keys)]
                seen.append(len(state.offload_keys))
        return build(output)

    monkeypatch.setattr(other, "_build_store_jobs", watched)
    scheduler, side = scheduler_of(live), side_of(live)
    params = greedy(STEPS, delivery="native")
    params.logprobs = 0  # so that its first token is its own
    live.llm_engine.add_request("0", {"prompt_token_ids": IDS}, params)
    (tracked,) = side.tracked.values()
    until(live, lambda: tracked.outcome)
    forget(live)  # it has a result and no blocks, so it waits for another
    assert tracked.pending
    until(live, lambda: tracked.allocated)
    preempt(scheduler)
    side._fail(tracked, "this is a test")
    until(live, lambda: not live.llm_engine.has_unfinished_requests())
    assert max(seen) > 0
