"""A hint in the real engine: what stays is what its queries look at, and nobody else reads it.

Steps are short, so that a prompt takes several, and one ends inside a hint: with sliding windows
the oldest rows that the request needs are gone in the step of the hint's last token. (The engine
that schedules ahead lets go of them a step later, so it is the other one that has windows here.)
"""

from __future__ import annotations

import math

import pytest
import torch

from qm_vllm import QuickMergeConfig
from tests.engines import engine, forced_async, random_prompt, scheduler_of
from tests.families import make_model
from tests.integration.generate import greedy, run
from tests.integration.preempting import forget_blocks, preempt
from tests.native_reference import NativeReference
from tests.reference import Reference, attention_error
from tests.tokens import reading_hints, text_of

BLOCK, STEPS, CHUNK = 32, 12, 256
PROMPTS = [random_prompt(length, 30 + length) for length in (701, 333, 502)]
HINTS = [tuple(random_prompt(length, 90 + length)) for length in (20, 3, 64)]
PAIRS = [*zip(PROMPTS, HINTS, strict=True), (PROMPTS[2], HINTS[0])]
HINT, OTHER = text_of(HINTS[0]), text_of(random_prompt(20, 95))


@pytest.fixture(scope="module", params=["llama", "gemma-3"])
def folder(request, tmp_path_factory):
    return make_model(request.param, tmp_path_factory.mktemp("hint"))


@pytest.fixture(scope="module")
def reference(folder):
    """Made before the engine: vLLM changes transformers' classes where it runs through them."""
    return NativeReference(str(folder))


@pytest.fixture(scope="module")
def encoded(folder):
    """The other delivery's reference, for models that have an adapter."""
    return Reference(str(folder)) if "llama" in folder.name else None


@pytest.fixture(scope="module")
def llm(folder, reference, encoded):
    with forced_async("llama" in folder.name), engine(
        folder, QuickMergeConfig(ratio=0.4, head_share=0.0), skip_tokenizer_init=True,
        max_num_batched_tokens=CHUNK, max_num_seqs=8,
    ) as llm:
        yield reading_hints(llm)


def deliveries(encoded):
    return ("native", "inject") if encoded is not None else ("native",)


@pytest.mark.parametrize("visible", [True, False])
def test_native_what_stays_is_what_the_hint_looks_at(live, reference, visible):
    assert len(PROMPTS[2]) < 2 * CHUNK < len(PROMPTS[2]) + len(HINTS[0])
    for ids, hint in PAIRS:
        want = reference.generate(
            ids, block_size=BLOCK, max_tokens=STEPS, ratio=0.4, special=(0, 1, 2), hint=hint,
            query_visible=visible, **({} if visible else {"saliency": "query"}),
        )
        scheduler_of(live).reset_prefix_cache(reset_connector=True)  # so that steps end there
        params = greedy(
            STEPS, delivery="native", hint=text_of(hint), query_visible=visible, details=True
        )
        params.logprobs = 0
        (out,) = live.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
        report = out.kv_transfer_params["quickmerge"]
        assert report["status"] == "compressed", report
        want = want.of(report["details"]["kept_indices"])
        assert report["details"]["kept_indices"] == want.kept
        assert (report["source_tokens"], report["hint_tokens"]) == (len(ids), len(hint))
        assert len(report["details"]["scores"]) == len(ids)
        assert report["first_token"] == "kept"
        want.check(out.outputs[0], 2)


@pytest.mark.parametrize("visible", [True, False])
def test_encoded_what_stays_is_what_the_hint_looks_at(live, encoded, visible):
    if encoded is None:
        pytest.skip("the model has no adapter that injects")
    for ids, hint in PAIRS:
        want = encoded.generate(
            ids, ratio=0.4, block_size=BLOCK, max_tokens=STEPS, E=4, score_layers=(1, 2),
            query_visible=visible, special=frozenset({0, 1, 2}), hint=hint,
        )
        ((tokens, report),) = run(live, [ids], greedy(
            STEPS, delivery="inject", hint=text_of(hint), query_visible=visible, details=True,
        ))
        assert report["status"] == "compressed", report
        assert report["details"]["kept_indices"] == want.kept
        assert len(report["details"]["groups"]) == len(ids)
        assert tokens == want.tokens


def test_another_hint_keeps_other_tokens_and_shares_the_document(live, encoded):
    ids = PROMPTS[0]
    for delivery in deliveries(encoded):
        kept, reports = [], []
        for hint in (HINT, OTHER, HINT):
            ((_, report),) = run(live, [ids], greedy(2, delivery=delivery, hint=hint))
            reports.append(report)
            ((_, report),) = run(live, [ids], greedy(
                2, delivery=delivery, hint=hint, details=True
            ))
            kept.append(report["details"]["kept_indices"])
        ((_, plain),) = run(live, [ids], greedy(2, delivery=delivery, details=True))
        assert [report["cached"] for report in reports] == [False, False, True]
        assert kept[0] == kept[2] != kept[1]
        assert plain["details"]["kept_indices"] not in kept
        assert all(max(one) == len(ids) - 1 for one in kept)
        if delivery == "native" and encoded is not None:
            hits = [report["prefill_cached_tokens"] for report in reports[:2]]
            assert hits == [0, (len(ids) + len(HINTS[0]) - 64) // BLOCK * BLOCK]


def test_two_hints_at_once_equal_each_alone(live, encoded):
    ways = [{"hint": HINT}, {"hint": OTHER}, {}, {"enabled": False}, {"hint": HINT, "ratio": 0.2}]
    ways = [{**way, "delivery": one} for one in deliveries(encoded) for way in ways]
    params = [greedy(STEPS, **way) for way in ways]
    prompts = [PROMPTS[2]] * len(ways)
    alone = [run(live, [ids], one)[0][0] for ids, one in zip(prompts, params, strict=True)]
    scheduler_of(live).reset_prefix_cache(reset_connector=True)
    got = run(live, prompts, params)
    assert [tokens for tokens, _ in got] == alone


def test_what_is_counted_is_the_prompt(live, encoded):
    for delivery in deliveries(encoded):
        (out,) = live.generate(
            [{"prompt_token_ids": PROMPTS[1]}],
            greedy(3, delivery=delivery, hint=text_of(HINTS[2])), use_tqdm=False,
        )
        assert list(out.prompt_token_ids) == PROMPTS[1]
        assert out.num_cached_tokens in (0, None)
        assert len(out.outputs[0].token_ids) == 3
        if encoded is not None:  # one block table
            report = out.kv_transfer_params["quickmerge"]
            assert report["kv_blocks"] == math.ceil((report["kept_tokens"] + 3 - 1) / BLOCK)


def test_a_hint_changes_nothing_where_all_stays(live, encoded):
    ((want, _),) = run(live, [PROMPTS[2]], greedy(STEPS, enabled=False))
    for delivery in deliveries(encoded):
        ((got, report),) = run(
            live, [PROMPTS[2]], greedy(STEPS, ratio=1.0, delivery=delivery, hint=HINT)
        )
        assert report["kept_tokens"] == len(PROMPTS[2])
        assert got == want


def test_kept_ids_that_are_prefilled_are_those_alone(live, encoded):
    if encoded is None:
        pytest.skip("its layers are not run over a prompt")
    ids = PROMPTS[0]
    ((got, report),) = run(
        live, [ids], greedy(STEPS, delivery="prefill", hint=HINT, details=True)
    )
    kept = report["details"]["kept_indices"]
    assert max(kept) == len(ids) - 1
    ((want, _),) = run(live, [[ids[i] for i in kept]], greedy(STEPS, enabled=False))
    assert got == want


def test_the_error_is_that_of_the_hints_own_reading(live, encoded):
    if encoded is None:
        pytest.skip("only the encoder measures it")
    ids, hint = PROMPTS[0], HINTS[0]
    ((_, report),) = run(live, [ids], greedy(2, delivery="inject", hint=HINT, details=True))
    x, errors, cache = encoded.core.embed_tokens(torch.tensor([*ids, *hint])), [], {}
    places = torch.arange(len(ids) + len(hint))
    kept = [*report["details"]["kept_indices"], *places[len(ids):].tolist()]
    with torch.inference_mode():
        for layer in range(4):
            x, weights, _ = encoded.layer(layer, x, places, cache)
            if layer >= 2:
                values = cache[layer][1].transpose(0, 1)
                errors.append(attention_error(weights[:, -64:], values, kept))
    assert report["attention_error"] == pytest.approx(max(errors), rel=1e-3)
    ((_, report),) = run(live, [ids], greedy(2, delivery="inject", hint=HINT, max_error=0.3))
    assert report["attention_error"] <= 0.3


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("how", ["abort", "preempt", "preempt cold"])
def test_whatever_ends_a_request_leaves_nothing(live, steps, how):
    ids, params = PROMPTS[2], greedy(STEPS, delivery="native", hint=HINT)
    ((alone, _),) = run(live, [ids], params)
    scheduler = scheduler_of(live)
    scheduler.reset_prefix_cache(reset_connector=True)
    live.llm_engine.add_request("r", {"prompt_token_ids": ids}, params)
    for _ in range(steps):
        live.llm_engine.step()
    if how == "abort":
        live.llm_engine.abort_request(["r"])
    else:
        preempt(scheduler)
        if how == "preempt cold":
            forget_blocks(scheduler)
    tokens = []
    while live.llm_engine.has_unfinished_requests():
        for out in live.llm_engine.step():
            tokens = list(out.outputs[0].token_ids)
    assert tokens == alone or how == "abort"


def test_an_engine_without_a_tokenizer_says_so(live):
    side = scheduler_of(live).connector.scheduler_side
    facts = side.facts
    side.facts = type(facts)(**{
        name: value for name, value in vars(facts).items() if name != "hints"
    })
    try:
        ((_, report),) = run(live, [PROMPTS[0]], greedy(2, delivery="native", hint=HINT))
    finally:
        side.facts = facts
    assert report["status"] == "untouched"
    assert "hint cannot work here: the engine has no tokenizer" in report["reason"]
