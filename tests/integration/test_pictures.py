"""Prompts with pictures, whose tokens are chosen like any others: one axis of positions, and three.

Qwen2-VL counts positions along three axes, LLaVA along one. Steps are short, so that prompts take
several; Qwen2-VL is scheduled ahead, as on a GPU.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import contextmanager

import pytest

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.messages import JobResult
from qm_vllm.engine.native import native_job
from qm_vllm.engine.requests.memo import Outcome
from tests.engines import forced_async, scheduler_of
from tests.integration.generate import greedy
from tests.integration.left_empty import left_empty
from tests.integration.preempting import forget_blocks, preempt
from tests.pictures import KINDS, PICTURE, make_model, picture, prompt, serving
from tests.pictures_reference import PictureReference

BLOCK, STEPS = 32, 12
ASK = {"block_size": BLOCK, "max_tokens": STEPS, "ratio": 0.4}
ONE = (prompt(60, 80, seed=1), [picture(0)])
WIDE = (prompt(20, 40, seed=3), [picture(1)])
"""Three in four of its tokens are the picture's, so Qwen2-VL has fewer positions than stay."""
TWO = (prompt(30, 50, 60, seed=5), [picture(2), picture(3, 64, 96)])
TEXT = (prompt(300, seed=9), [])
PROMPTS = {"one": ONE, "wide": WIDE, "two": TWO, "text": TEXT}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return make_model(request.param, tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def reference(folder):
    """Loaded before the engine: an empty module stands in for torchvision there."""
    return PictureReference(str(folder), folder.name)


@pytest.fixture(scope="module")
def llm(folder, reference):
    config = QuickMergeConfig(
        delivery="native", min_tokens=64, head_share=0.0, layer_share=0.0
    )
    with forced_async("qwen2" in folder.name), serving(
        folder, config, max_num_batched_tokens=256, max_num_seqs=8,
    ) as llm:
        yield llm


@pytest.fixture
def live(llm):
    """The module's engine; afterwards nobody may hold a picture's encoded states either."""
    encoded = scheduler_of(llm).encoder_cache_manager
    scheduler_of(llm).reset_encoder_cache()
    with left_empty(llm):
        yield llm
    assert not encoded.request_cached_ids
    assert not any(encoded.cached.values())


def shown(ids, pictures):
    images = {"multi_modal_data": {"image": pictures}} if len(pictures) else {}
    return {"prompt_token_ids": list(ids), **images}


def ask(llm, *prompts, params=None, **options):
    """Token ids and the report of each prompt."""
    outputs = llm.generate(
        [shown(*one) for one in prompts], params or greedy(STEPS, **options), use_tqdm=False
    )
    return [(list(out.outputs[0].token_ids), out.kv_transfer_params["quickmerge"])
            for out in outputs]


def look(llm, one, **options):
    """Kept positions of a prompt, and its answer, of whose tokens all have seen these alone."""
    params = greedy(STEPS, ratio=0.4, details=True, **options)
    params.logprobs = 0
    (out,) = llm.generate([shown(*one)], params, use_tqdm=False)
    report = out.kv_transfer_params["quickmerge"]
    assert report["status"] == "compressed", report
    return report["details"]["kept_indices"], out.outputs[0]


def drain(llm):
    done = {}
    while llm.llm_engine.has_unfinished_requests():
        for out in llm.llm_engine.step():
            if out.finished:
                done[out.request_id] = out
    return done


def add(llm, name, one, **options):
    llm.llm_engine.add_request(name, shown(*one), greedy(STEPS, **options))


def test_keep_all_equals_plain_vllm(live):
    prompts = list(PROMPTS.values())
    plain, ours = ask(live, *prompts, enabled=False), ask(live, *prompts, ratio=1.0)
    for (want, before), (got, report) in zip(plain, ours, strict=True):
        assert report["status"] == "compressed", report
        assert report["kept_tokens"] == before["source_tokens"]
        assert got == want


@pytest.mark.parametrize(("name", "options"), [
    ("one", {}), ("wide", {}), ("two", {}), ("text", {}), ("one", {"hint": "w5 w9 w77 w300"}),
])
def test_fewer_positions_equal_the_reference(live, reference, name, options):
    ids, pictures = PROMPTS[name]
    kept, answer = look(live, PROMPTS[name], **options)
    hint = (5, 9, 77, 300) if options else ()
    want = reference.answer(ids, pictures, hint=hint, **ASK).of(kept)
    assert kept == want.kept
    want.check(answer, 6)
    if pictures:  # some of a picture's tokens stay, and not all
        first = ids.index(PICTURE)
        assert 10 < sum(first <= one < first + 144 for one in kept) < 140


def test_heads_keep_tokens_of_their_own(live, reference, monkeypatch):
    chosen, choose = [], native_job.choose_for_heads

    def record(*args):
        chosen.append(choose(*args))
        return chosen[-1]

    monkeypatch.setattr(native_job, "choose_for_heads", record)
    kept, answer = look(live, ONE, head_share=0.5)
    own = {layer: heads[:, :-1].tolist() for layer, heads in enumerate(chosen)}
    assert len(own) == 6
    want = reference.answer(*ONE, head_share=0.5, own=own, **ASK).of(kept)
    assert kept == want.kept
    want.check(answer, 6)


def test_the_first_token_has_seen_the_whole_prompt(live, reference):
    ((tokens, report),) = ask(live, ONE, ratio=0.4)
    want = reference.answer(*ONE, first=True, **ASK)
    assert report["first_token"] == "prompt"
    assert tokens[: want.decided()] == want.tokens[: want.decided()]


def test_blocks_are_those_of_k_positions_and_pictures_are_encoded_once(live, monkeypatch):
    scheduler, encoded = scheduler_of(live), Counter()
    (group,) = scheduler.kv_cache_manager.coordinator.single_type_managers
    schedule = scheduler.schedule

    def counted(*args, **kwargs):
        output = schedule(*args, **kwargs)
        encoded.update({
            name: len(inputs) for name, inputs in output.scheduled_encoder_inputs.items()
        })
        return output

    monkeypatch.setattr(scheduler, "schedule", counted)
    add(live, "r", TWO, ratio=0.3)
    (tokens,) = [one.arrival.tokens for one in scheduler.connector.scheduler_side.tracked.values()]
    steps = 0
    while live.llm_engine.has_unfinished_requests():
        live.llm_engine.step()
        for request in scheduler.requests.values():
            if request.num_output_tokens and request.request_id not in scheduler.shadows:
                steps += 1
                # Scheduled ahead: a token that is on its way has its place already.
                ahead = request.num_output_placeholders
                positions = request.num_prompt_tokens + request.num_output_tokens + ahead - 1
                assert request.num_prompt_tokens <= 0.3 * tokens + 1
                held = len(group.req_to_blocks[request.request_id])
                assert held == math.ceil(positions / BLOCK)
    assert steps >= STEPS - 3
    assert sum(encoded.values()) == 2


def test_pictures_with_equal_ids_share_nothing(live):
    """Neither at once nor one after the other, and the same picture shares all."""
    ids, other = ONE[0], [picture(77)]
    alone = []
    for pictures in (ONE[1], other):
        alone.append(ask(live, (ids, pictures), ratio=0.4)[0][0])
        scheduler_of(live).reset_prefix_cache(reset_connector=True)
    assert alone[0] != alone[1]
    first = ask(live, (ids, ONE[1]), (ids, other), (ids, ONE[1]), ratio=0.4)
    assert [tokens for tokens, _ in first] == [alone[0], alone[1], alone[0]]
    again = ask(live, (ids, other), (ids, [picture(0)]), ratio=0.4)  # another object, equal pixels
    assert [tokens for tokens, _ in again] == [alone[1], alone[0]]
    assert all(report["cached"] for _, report in again)
    third = ask(live, (ids, [picture(78)]), ratio=0.4)
    assert not third[0][1]["cached"]


def test_a_second_question_about_a_picture_finds_its_blocks(live):
    """The plain blocks of the picture, which the first question's shadow left."""
    second = (ONE[0][:-20] + prompt(70, seed=40), ONE[1])
    ask(live, ONE, ratio=0.4)
    ((tokens, report),) = ask(live, second, ratio=0.4)
    scheduler_of(live).reset_prefix_cache(reset_connector=True)
    ((want, _),) = ask(live, second, ratio=0.4)
    assert report["prefill_cached_tokens"] >= 192
    assert tokens == want


def test_samples_of_one_prompt_share_one_job(live, monkeypatch):
    shadows, started = scheduler_of(live).shadows, []
    start = shadows.start
    monkeypatch.setattr(
        shadows, "start", lambda *args, **kwargs: started.append(1) or start(*args, **kwargs)
    )
    params = greedy(STEPS, ratio=0.4)
    params.n, params.temperature, params.top_k, params.logprobs = 2, 1.0, 1, 0
    (out,) = live.generate([shown(*ONE)], params, use_tqdm=False)
    _, want = look(live, ONE)
    assert [list(one.token_ids) for one in out.outputs] == [list(want.token_ids)] * 2
    assert len(started) == 2  # the other one is for the details


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 6, 9])
def test_a_request_that_is_aborted_at_any_step_leaves_nothing(live, steps):
    add(live, "gone", ONE)
    add(live, "stays", WIDE)
    for _ in range(steps):
        live.llm_engine.step()
    live.llm_engine.abort_request(["gone"])
    assert list(drain(live)) == ["stays"]


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("steps", [3, 9])
def test_preempted_requests_give_the_same_tokens(live, cold, steps):
    """Where blocks are gone, a shadow with the same pictures prefills the prompt again."""
    prompts = {"a": ONE, "b": TWO}
    alone = {name: ask(live, one, ratio=0.4)[0][0] for name, one in prompts.items()}
    scheduler = scheduler_of(live)
    scheduler.reset_prefix_cache(reset_connector=True)
    for name, one in prompts.items():
        add(live, name, one, ratio=0.4)
    while steps > 0 or not scheduler.running:
        live.llm_engine.step()
        steps -= 1
    preempt(scheduler)
    if cold:
        forget_blocks(scheduler, used=True)
    got = {name: list(out.outputs[0].token_ids) for name, out in drain(live).items()}
    assert got == alone


def test_a_cleared_cache_gives_a_waiting_prompt_its_pictures_back(live):
    ((want, _),) = ask(live, ONE, ratio=0.4)
    scheduler = scheduler_of(live)
    scheduler.reset_prefix_cache(reset_connector=True)
    side = scheduler.connector.scheduler_side
    add(live, "r", ONE, ratio=0.4)
    (tracked,) = side.tracked.values()
    side._resize(tracked, Outcome.of(JobResult(kept=list(range(0, 280, 3)))))
    assert tracked.undelivered
    assert not tracked.arrival.handle.request.mm_features
    scheduler.reset_prefix_cache(reset_connector=True)
    assert len(tracked.arrival.handle.request.mm_features) == 1
    assert list(drain(live)["r"].outputs[0].token_ids) == want


@contextmanager
def failing(monkeypatch):
    def broken(*_):
        raise ValueError("no room for keys")

    with monkeypatch.context() as patch:
        patch.setattr(native_job.NativeJob, "_move", broken)
        yield


def test_a_failing_compaction_fails_no_request(live, monkeypatch):
    ((want, _),) = ask(live, ONE, enabled=False)
    with failing(monkeypatch):
        ((tokens, report),) = ask(live, ONE)
    assert tokens == want
    assert report["status"] == "untouched"
    assert "no room for keys" in report["reason"]


def test_a_prompt_that_cannot_be_compacted_again_ends_with_an_error(live, monkeypatch):
    """Ids say nothing of a picture, so there is nothing that its answer could go on from."""
    scheduler = scheduler_of(live)
    add(live, "r", ONE, ratio=0.4)
    while sum(one.num_output_tokens for one in scheduler.running) < 3:
        live.llm_engine.step()
    preempt(scheduler)
    forget_blocks(scheduler, used=True)
    with failing(monkeypatch):
        assert drain(live)["r"].outputs[0].finish_reason == "error"
    assert ask(live, ONE, ratio=0.4)[0][1]["status"] == "compressed"


@pytest.mark.parametrize(("options", "words"), [
    ({"delivery": "inject"}, 'use delivery="native"'),
    ({"delivery": "prefill"}, 'use delivery="native"'),
    ({"delivery": "auto"}, None),
])
def test_only_the_native_delivery_sees_pictures(live, options, words):
    ((_, report),) = ask(live, ONE, ratio=0.4, **options)
    if words is None:
        assert (report["status"], report["delivery"]) == ("compressed", "native")
    else:
        assert report["status"] == "untouched"
        assert words in report["reason"]


def test_states_in_the_place_of_pictures_are_refused_as_without_us(live, folder):
    """Bad ones would end the engine, so vLLM takes none unless its operator said so."""
    import torch

    scheduler = scheduler_of(live)
    assert scheduler.defer_block_free is ("qwen2" in folder.name)  # where it schedules ahead
    states, grid = torch.zeros(1, 7, 128), torch.tensor([[1, 12, 16]])
    one_axis = [(states, "You must set `--enable-mm-embeds`")]
    several = [
        ({"image_embeds": states[0], "image_grid_thw": grid}, "You must set `--enable-mm-embeds`"),
        ({"image_grid_thw": grid}, "should contain the fields"),
    ]
    for image, words in several if "qwen2" in folder.name else one_axis:
        with pytest.raises(ValueError, match=words):
            ask(live, (ONE[0], image))
    assert ask(live, ONE, ratio=0.4)[0][1]["status"] == "compressed"


def test_a_prompt_that_ends_with_a_picture_is_left_alone(live):
    ids = [*prompt(200, seed=11), PICTURE]
    plain, ours = (ask(live, (ids, ONE[1]), **way)[0] for way in ({"enabled": False}, {}))
    assert ours[0] == plain[0]
    assert "put text behind them" in ours[1]["reason"]
