"""The life of requests whose prompts vLLM prefills: whenever one ends, nothing stays behind.

A decoder whose layers are alike, as vLLM schedules on a CPU; the same with layers that keep more
than others; and one with sliding-window layers and block tables of their own, with the asynchronous
scheduling of GPUs. Steps are short, so that prompts take several.
"""

from __future__ import annotations

from collections import Counter

import pytest

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.native.blocks import prompt_blocks
from tests.engines import engine, forced_async, random_prompt, scheduler_of
from tests.families import make_model
from tests.integration.generate import greedy, run
from tests.integration.preempting import forget_blocks, preempt
from tests.native_reference import NativeReference

BLOCK, STEPS = 32, 12
LENGTHS = (701, 333, 512)
PROMPTS = [random_prompt(length, 20 + length) for length in LENGTHS]


@pytest.fixture(scope="module", params=["llama", "gemma-3", "llama grouped"])
def folder(request, tmp_path_factory):
    family, *_ = request.param.split()
    return make_model(family, tmp_path_factory.mktemp(request.param.replace(" ", "_")))


@pytest.fixture(scope="module")
def share(folder):
    """Of all entries, what layers that look things up get."""
    return 0.6 if "grouped" in str(folder) else 0.0


@pytest.fixture(scope="module")
def reference(folder, share):
    model = NativeReference(str(folder))

    def get(ids, ratio=0.4):
        return model.generate(
            ids, block_size=BLOCK, max_tokens=STEPS, ratio=ratio, special=(0, 1, 2), first=True,
            layer_share=share,
        )

    return get


@pytest.fixture(scope="module")
def llm(folder, reference, share):
    ahead = "gemma" in folder.name or bool(share)
    config = QuickMergeConfig(delivery="native", head_share=0.0, layer_share=share)
    with forced_async(ahead), engine(
        folder, config, skip_tokenizer_init=True,
        max_num_batched_tokens=256, max_num_seqs=8,
    ) as llm:
        assert (llm.llm_engine.engine_core.engine_core.batch_queue is not None) is ahead
        yield llm


@pytest.mark.parametrize("tokens", [31, 300, 640, 1025, 3000])
def test_a_prompt_needs_the_blocks_for_which_vllm_lets_it_wait(live, tokens):
    """Fewer, and it would be started where vLLM never begins it; all steps that run at once count.
    """
    manager = scheduler_of(live).kv_cache_manager
    wanted = manager.coordinator.get_num_blocks_to_allocate(
        request_id="none", num_tokens=tokens, num_tokens_main_model=tokens, num_encoder_tokens=0,
        new_computed_blocks=manager.empty_kv_cache_blocks.blocks, total_computed_tokens=0,
        num_local_computed_tokens=0, apply_admission_cap=True, prefill_end=tokens,
    )
    facts = scheduler_of(live).connector.scheduler_side.facts
    found = prompt_blocks(tokens, facts.windows, BLOCK, facts.in_flight_tokens)
    assert wanted <= found <= wanted + len(facts.windows)


def add(llm, name, ids, **options):
    llm.llm_engine.add_request(name, {"prompt_token_ids": ids}, greedy(STEPS, **options))


def drain(llm):
    done = {}
    while llm.llm_engine.has_unfinished_requests():
        for out in llm.llm_engine.step():
            if out.finished:
                done[out.request_id] = list(out.outputs[0].token_ids)
    return done


def test_prompts_in_several_steps_equal_the_reference(live, reference):
    got = run(live, PROMPTS, greedy(STEPS, details=True))
    for ids, (tokens, report) in zip(PROMPTS, got, strict=True):
        want = reference(ids)
        sizes = want.sizes or {0: len(want.kept)}
        assert report["kept_tokens"] == sum(sizes.values()) / len(sizes)
        want = want.reported(report)
        assert tokens[: want.decided()] == want.tokens[: want.decided()]


def test_a_mixed_batch_equals_each_alone(live):
    prompts = [*PROMPTS, random_prompt(90, 1), random_prompt(600, 2), random_prompt(400, 3)]
    ways = [{}, {"ratio": 0.2}, {"ratio": 1.0}, {}, {"enabled": False}, {"ratio": 0.3}]
    params = [greedy(STEPS, **way) for way in ways]
    alone = [run(live, [ids], one)[0][0] for ids, one in zip(prompts, params, strict=True)]
    scheduler_of(live).reset_prefix_cache(reset_connector=True)
    assert [tokens for tokens, _ in run(live, prompts, params)] == alone


def test_a_second_question_finds_the_documents_plain_blocks(live, reference):
    """As many as plain vLLM finds: with sliding windows it keeps some from the second on."""
    prompts = [random_prompt(600, 5) + random_prompt(50 + 10 * i, 6 + i) for i in range(3)]
    scheduler, hits = scheduler_of(live), {}
    for way in ({"enabled": False}, {}):
        scheduler.reset_prefix_cache(reset_connector=True)
        found = []
        for ids in prompts:
            (out,) = live.generate(
                [{"prompt_token_ids": ids}], greedy(STEPS, details=True, **way), use_tqdm=False
            )
            report = out.kv_transfer_params["quickmerge"]
            found.append(report.get("prefill_cached_tokens", out.num_cached_tokens))
        hits[bool(way)] = found
    # The last queries are computed anew, and none of these prompts has so few after the document.
    assert hits[False] == hits[True]
    assert hits[False][0] == 0
    assert hits[False][2] == 600 // BLOCK * BLOCK
    want, got = reference(prompts[2]).reported(report), list(out.outputs[0].token_ids)
    assert got[: want.decided()] == want.tokens[: want.decided()]


def test_prefills_for_jobs_are_counted_apart(live, monkeypatch):
    tally, counts = scheduler_of(live).connector.scheduler_side.tally, Counter()
    take = tally.take

    def taken():
        data = take()
        counts.update((data or {}).get("counts", {}))
        return data

    monkeypatch.setattr(tally, "take", taken)
    document = random_prompt(600, 15)
    for seed in (16, 17, 18):
        run(live, [document + random_prompt(70, seed)], greedy(2))
    assert counts["shadow_prefills"] == counts["jobs"] == counts["compressed"] == 3
    assert counts["shadow_tokens"] == counts["source_tokens"] == 3 * 670
    assert counts["shadow_cached_tokens"] >= 600 // BLOCK * BLOCK


def test_equal_prompts_share_one_prefill_and_a_repeated_one_needs_none(live):
    ids = random_prompt(500, 8)
    got = run(live, [ids, ids], greedy(STEPS))
    assert got[0][0] == got[1][0]
    ((again, report),) = run(live, [ids], greedy(STEPS))
    assert again == got[0][0]
    assert report["cached"]


@pytest.mark.parametrize("steps", range(14))
def test_a_request_that_is_aborted_at_any_step_leaves_nothing(live, steps):
    add(live, "gone", PROMPTS[0])
    add(live, "stays", PROMPTS[1])
    for _ in range(steps):
        live.llm_engine.step()
    live.llm_engine.abort_request(["gone"])
    assert list(drain(live)) == ["stays"]


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("steps", [4, 12])
def test_preempted_requests_give_the_same_tokens(live, cold, steps):
    """Shadows and requests alike; where their blocks are gone, prompts are prefilled again."""
    alone = [run(live, [ids], greedy(STEPS))[0][0] for ids in PROMPTS]
    scheduler = scheduler_of(live)
    scheduler.reset_prefix_cache(reset_connector=True)
    for name, ids in zip("abc", PROMPTS, strict=True):
        add(live, name, ids)
    for _ in range(steps):
        live.llm_engine.step()
    assert scheduler.running
    preempt(scheduler)
    if cold:
        forget_blocks(scheduler)
    assert drain(live) == dict(zip("abc", alone, strict=True))


def test_a_prefill_that_is_preempted_again_and_again_gives_up(live, folder, share):
    add(live, "r", PROMPTS[0])
    scheduler, reports = scheduler_of(live), []
    while live.llm_engine.has_unfinished_requests():
        for out in live.llm_engine.step():
            if out.finished:
                reports.append(out.kv_transfer_params["quickmerge"])
        victims = [one for one in scheduler.running if one.request_id in scheduler.shadows]
        preempt(scheduler, victims, drop_stale_output=True)
        forget_blocks(scheduler)
    assert len(reports) == 1
    # A step that was scheduled ahead ends the prompt all the same.
    if "llama" in folder.name and not share:
        assert "preempted its prefill 3 times" in reports[0]["reason"]


def test_a_shadow_that_vllm_ends_leaves_the_prompt_to_the_request(live):
    from vllm.v1.request import RequestStatus

    add(live, "r", PROMPTS[0])
    live.llm_engine.step()
    scheduler = scheduler_of(live)
    scheduler.finish_requests(list(scheduler.shadows.live), RequestStatus.FINISHED_ABORTED)
    assert list(drain(live)) == ["r"]


def test_a_failing_compaction_fails_no_request(live, monkeypatch):
    from qm_vllm.engine.native.native_job import NativeJob

    def broken(*_):
        raise ValueError("no room for keys")

    ((want, _),) = run(live, [PROMPTS[0]], greedy(STEPS, enabled=False))
    monkeypatch.setattr(NativeJob, "_move", broken)
    ((tokens, report),) = run(live, [PROMPTS[0]], greedy(STEPS))
    assert tokens == want
    assert report["status"] == "untouched"
    assert "no room for keys" in report["reason"]


def test_failing_looks_at_queries_fail_no_request(live, monkeypatch):
    from qm_vllm.engine.native.native_job import NativeJob

    def broken(*_):
        raise ValueError("nothing to see")

    monkeypatch.setattr(NativeJob, "see", broken)
    ((_, report),) = run(live, [PROMPTS[0]], greedy(STEPS))
    assert report["status"] == "untouched"
    assert "nothing to see" in report["reason"]


def test_users_are_not_shown_shadows(live):
    """Neither as requests that run or wait, nor as outputs."""
    scheduler, seen = scheduler_of(live), set()
    add(live, "r", PROMPTS[0])
    while live.llm_engine.has_unfinished_requests():
        outputs = live.llm_engine.step()
        assert {out.request_id for out in outputs} <= {"r"}
        seen.add(sum(scheduler.get_request_counts()))
    assert seen <= {0, 1}
