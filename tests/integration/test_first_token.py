"""The first token of an answer: sampled over the whole prompt by the request that prefills it."""

from __future__ import annotations

import pytest

from qm_vllm import QuickMergeConfig
from tests.engines import engine, forced_async, random_prompt, scheduler_of
from tests.families import make_model
from tests.integration.generate import greedy, run
from tests.integration.preempting import forget_blocks, preempt
from tests.native_reference import NativeReference

BLOCK, STEPS, RATIO = 32, 8, 0.15
PROMPTS = [random_prompt(300 + 60 * i, 40 + i) for i in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model("llama", tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def reference(folder):
    model = NativeReference(str(folder))
    return [
        model.generate(
            ids, block_size=BLOCK, max_tokens=STEPS, ratio=RATIO, special=(0, 1, 2), first=True
        )
        for ids in PROMPTS
    ]


@pytest.fixture(scope="module", params=[False, True], ids=["waits", "schedules ahead"])
def llm(request, folder, reference):
    with forced_async(request.param), engine(
        folder, QuickMergeConfig(delivery="native", ratio=RATIO, head_share=0.0),
        skip_tokenizer_init=True, max_num_batched_tokens=256, max_num_seqs=8,
    ) as llm:
        yield llm


def sampling(**changes):
    params = greedy(changes.pop("max_tokens", STEPS), **changes.pop("options", {}))
    for name, value in changes.items():
        setattr(params, name, value)
    return params


def ask(llm, ids, params):
    (out,) = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
    return out, out.kv_transfer_params["quickmerge"]


def steps_to_a_token(llm, ids, params):
    llm.llm_engine.add_request("r", {"prompt_token_ids": ids}, params)
    steps = None
    for count in range(1, 200):
        for out in llm.llm_engine.step():
            if steps is None and out.outputs[0].token_ids:
                steps = count
        if not llm.llm_engine.has_unfinished_requests():
            return steps
    raise AssertionError("the request did not end")


def test_it_is_that_of_the_whole_prompt_and_what_follows_is_of_the_kept(live, reference):
    asked = [list(ids) for ids in PROMPTS]
    got = run(live, PROMPTS, sampling(options={"details": True}))
    plain = run(live, PROMPTS, sampling(options={"enabled": False}))
    kept = []
    for ids, (tokens, report), (whole, _), want in zip(
        PROMPTS, got, plain, reference, strict=True
    ):
        assert report["first_token"] == "prompt"
        assert len(tokens) == STEPS
        assert tokens[0] == whole[0]
        want = want.of(report["details"]["kept_indices"])
        assert report["details"]["kept_indices"] == want.kept
        assert tokens[: want.decided()] == want.tokens[: want.decided()]
        out, report = ask(live, ids, sampling(logprobs=0))
        assert report["first_token"] == "kept"
        kept.append(out.outputs[0].token_ids[0])
    assert asked == PROMPTS  # an in-process engine shares its lists with us
    assert kept != [whole[0] for whole, _ in plain]  # else nothing above says anything


def test_an_answer_begins_as_many_steps_after_its_request_as_without_us(live):
    for seed, ids in enumerate(PROMPTS[:3]):
        other = random_prompt(len(ids), 90 + seed)
        plain = steps_to_a_token(live, other, sampling(options={"enabled": False}))
        assert steps_to_a_token(live, ids[::-1], sampling()) == plain


@pytest.mark.parametrize("changes", [
    {"temperature": 0.8, "top_p": 0.9}, {"top_k": 5, "temperature": 1.0}, {"min_tokens": 3},
    {"stop_token_ids": [511]}, {"temperature": 1.0, "logit_bias": {7: 100.0}},
    {"temperature": 1.0, "allowed_token_ids": [7]}, {"ignore_eos": False},
], ids=lambda changes: next(iter(changes)))
def test_these_parameters_need_no_request_of_their_own(live, changes):
    out, report = ask(live, random_prompt(400, 60), sampling(**changes))
    assert report["first_token"] == "prompt"
    assert len(out.outputs[0].token_ids) == STEPS
    if "logit_bias" in changes or "allowed_token_ids" in changes:
        assert set(out.outputs[0].token_ids) == {7}


@pytest.mark.parametrize("changes", [
    {"seed": 4, "temperature": 1.0}, {"presence_penalty": 0.5}, {"frequency_penalty": 0.5},
    {"repetition_penalty": 1.2}, {"logprobs": 2}, {"max_tokens": 1},
    {"_bad_words_token_ids": [[3, 4]]},
], ids=lambda changes: next(iter(changes)))
def test_these_parameters_do(live, changes):
    out, report = ask(live, random_prompt(401, 61), sampling(**changes))
    assert report["first_token"] == "kept"
    assert len(out.outputs[0].token_ids) == changes.get("max_tokens", STEPS)


def test_a_first_token_that_ends_the_answer_is_left_to_the_request(live):
    ids = PROMPTS[0][::-1]
    ((whole, _),) = run(live, [ids], sampling(options={"enabled": False}))
    out, report = ask(live, ids, sampling(stop_token_ids=[whole[0]]))
    assert report["first_token"] == "kept"
    assert out.outputs[0].finish_reason in ("stop", "length")


def test_equal_prompts_begin_alike_together_and_later(live):
    ids = random_prompt(500, 62)
    ((whole, _),) = run(live, [ids], sampling(options={"enabled": False}))
    together = run(live, [ids, ids, ids], sampling())
    later = run(live, [ids], sampling())
    for tokens, report in [*together, *later]:
        assert report["first_token"] == "prompt"
        assert tokens == together[0][0]
        assert tokens[0] == whole[0]
    assert later[0][1]["cached"]
    # Other weights may answer now: what was kept is remembered, what was said is sampled anew.
    scheduler_of(live).reset_prefix_cache()
    ((tokens, report),) = run(live, [ids], sampling())
    assert (report["cached"], report["first_token"]) == (True, "prompt")
    assert tokens == together[0][0]


def test_a_first_token_does_not_depend_on_who_asked_before(live):
    """Whoever a prompt was prefilled for, and however often, a greedy answer begins alike."""
    ids = random_prompt(500, 69)
    ((alone, _),) = run(live, [ids], sampling())
    scheduler = scheduler_of(live)
    scheduler.reset_prefix_cache(reset_connector=True)
    _, report = ask(live, ids, sampling(seed=3, temperature=1.0))
    assert report["first_token"] == "kept"
    ((tokens, report),) = run(live, [ids], sampling())
    assert (report["cached"], report["first_token"], tokens) == (True, "prompt", alone)
    # One that was preempted and whose blocks are gone: its job is done again.
    live.llm_engine.add_request("r", {"prompt_token_ids": ids}, sampling())
    happened = False
    while live.llm_engine.has_unfinished_requests():
        answered = [out for out in live.llm_engine.step() if out.outputs[0].token_ids]
        if answered and not happened:
            happened = True
            preempt(scheduler)
            forget_blocks(scheduler)
    assert happened
    ((tokens, report),) = run(live, [ids], sampling())
    assert (report["cached"], report["first_token"], tokens) == (True, "prompt", alone)


def test_answers_that_are_drawn_share_no_first_token(live):
    ids = random_prompt(500, 63)
    drawn = run(live, [ids, ids, ids], sampling(temperature=1.0))
    assert sorted(report["first_token"] for _, report in drawn) == ["kept", "kept", "prompt"]
    ((_, report),) = run(live, [ids], sampling())
    assert (report["cached"], report["first_token"]) == (True, "kept")


def test_cached_tokens_are_those_of_the_whole_prompt(live):
    document = random_prompt(512, 64)
    new, _ = ask(live, document + random_prompt(80, 65), sampling())
    again, _ = ask(live, document + random_prompt(80, 66), sampling())
    assert (new.num_cached_tokens, again.num_cached_tokens) == (0, 512)


def test_several_answers_to_a_prompt_are_complete(live):
    out, _ = ask(live, random_prompt(402, 67), sampling(n=3, temperature=1.0))
    assert [len(one.token_ids) for one in out.outputs] == [STEPS] * 3


@pytest.mark.parametrize("what", ["abort", "preempt", "reset"])
def test_whatever_happens_after_the_first_token_nothing_is_lost(live, what):
    ids = random_prompt(450, 68)
    ((alone, _),) = run(live, [ids], sampling())
    scheduler = scheduler_of(live)
    scheduler.reset_prefix_cache(reset_connector=True)
    live.llm_engine.add_request("r", {"prompt_token_ids": ids}, sampling())
    tokens, happened = [], False
    while live.llm_engine.has_unfinished_requests():
        for out in live.llm_engine.step():
            tokens = list(out.outputs[0].token_ids)
        if not tokens or happened:
            continue
        happened = True
        if what == "abort":
            live.llm_engine.abort_request(["r"])
        elif what == "reset":
            scheduler.reset_prefix_cache(reset_running_requests=False, reset_connector=True)
        elif what == "preempt":
            preempt(scheduler)
    assert happened
    assert tokens == (alone[: len(tokens)] if what == "abort" else alone)
