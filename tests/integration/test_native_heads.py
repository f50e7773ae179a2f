"""Each KV head keeps some tokens of its own: what the engine writes is what transformers reads.

Of two tokens that rank alike one processor keeps this and another that, and there are many heads.
So the engine's positions are compared up to such pairs, and then the reference goes on from them.
"""

from __future__ import annotations

import pytest

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.native import native_job
from tests.engines import engine, random_prompt, scheduler_of
from tests.families import make_model
from tests.integration.generate import greedy, run
from tests.integration.preempting import forget_blocks, preempt
from tests.native_reference import NativeReference
from tests.tokens import reading_hints, text_of

BLOCK, TOKENS, SHARE = 32, 12, 0.5
PROMPTS = [random_prompt(length, seed) for seed, length in ((3, 300), (4, 701))]
OPTIONS = {"ratio": 0.4, "head_share": SHARE}
ROUNDING = 12
"""Places by which a token of a head's own order may be off."""


@pytest.fixture(scope="module", params=["llama", "gemma-2", "gemma-3", "qwen3", "glm-4",
                                        "llama grouped"])
def folder(request, tmp_path_factory):
    family, *_ = request.param.split()
    return make_model(family, tmp_path_factory.mktemp(request.param.replace(" ", "_")))


@pytest.fixture(scope="module")
def layers(folder):
    """Of all entries, what layers that look things up get."""
    return {"layer_share": 0.6 if "grouped" in str(folder) else 0.0}


@pytest.fixture(scope="module")
def reference(folder):
    return NativeReference(str(folder))


@pytest.fixture(scope="module")
def llm(folder, reference, layers):
    with engine(
        folder, QuickMergeConfig(delivery="native", **layers), skip_tokenizer_init=True,
        max_num_batched_tokens=256,
    ) as llm:
        yield reading_hints(llm)


@pytest.fixture
def chosen(monkeypatch):
    """Positions [KVH, K] of each layer in turn."""
    found, choose = [], native_job.choose_for_heads

    def record(*args):
        found.append(choose(*args))
        return found[-1]

    monkeypatch.setattr(native_job, "choose_for_heads", record)
    return found


HINT = tuple(random_prompt(20, 5))


@pytest.mark.parametrize(("hint", "visible"), [((), True), (HINT, True), ((), False)],
                         ids=["alone", "with a hint", "blind"])
def test_heads_keep_what_they_look_at(live, reference, layers, chosen, hint, visible):
    for ids in PROMPTS:
        chosen.clear()
        params = greedy(
            TOKENS, details=True, hint=text_of(hint), query_visible=visible, **OPTIONS
        )
        params.logprobs = 0
        (out,) = live.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
        report = out.kv_transfer_params["quickmerge"]
        assert report["status"] == "compressed", report
        assert report["saliency"] == ("query" if visible else "leverage")
        ask = {"block_size": BLOCK, "max_tokens": TOKENS, "special": (0, 1, 2), "hint": hint,
               "query_visible": visible, **OPTIONS, **layers}
        want = reference.generate(ids, **ask)
        assert len(chosen) == len(want.heads) > 0
        own, differ = {}, 0
        for (layer, heads), kept in zip(want.heads.items(), chosen, strict=True):
            k = want.sizes.get(layer, report["kept_tokens"])
            assert kept.shape == (len(heads.places), k)
            own[layer] = kept[:, :-1].tolist()
            for mine, place in zip(kept, heads.places, strict=True):
                assert mine.tolist() == sorted(set(mine.tolist()))
                assert place[mine].max() <= place.topk(k, largest=False).values[-1] + ROUNDING
                differ += set(mine.tolist()) != set(
                    place.topk(k, largest=False).indices.tolist()
                )
        assert differ <= len(own)  # such pairs are rare
        want = reference.generate(ids, own=own, **ask)
        want.check(out.outputs[0], 1)


def test_where_nothing_may_look_what_stands_out_stays(live, reference, layers):
    options = {"ratio": 0.4, "head_share": 0.0, "query_visible": False}
    for ids in PROMPTS:
        params = greedy(TOKENS, details=True, **options)
        params.logprobs = 0
        (out,) = live.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
        want = reference.generate(
            ids, block_size=BLOCK, max_tokens=TOKENS, special=(0, 1, 2), **options, **layers
        ).reported(out.kv_transfer_params["quickmerge"])
        want.check(out.outputs[0], 1)


def test_they_keep_it_again_where_the_blocks_are_gone(live):
    """A preempted request whose job runs again, with its kept ids given; heads choose anew."""
    alone = [run(live, [ids], greedy(TOKENS, **OPTIONS))[0][0] for ids in PROMPTS]
    scheduler = scheduler_of(live)
    scheduler.reset_prefix_cache(reset_connector=True)
    for name, ids in enumerate(PROMPTS):
        live.llm_engine.add_request(
            str(name), {"prompt_token_ids": ids}, greedy(TOKENS, **OPTIONS)
        )
    done, preempted = {}, False
    while live.llm_engine.has_unfinished_requests():
        for out in live.llm_engine.step():
            done[out.request_id] = list(out.outputs[0].token_ids)
        if not preempted and len(done) == 2 and min(map(len, done.values())) >= 3:
            preempted = True
            preempt(scheduler)
            forget_blocks(scheduler)
    assert preempted
    assert [done[str(name)] for name in range(len(PROMPTS))] == alone


def test_keeping_all_leaves_heads_nothing_to_choose(live, chosen):
    ((plain, _), *_) = run(live, PROMPTS[:1], greedy(TOKENS, enabled=False))
    ((ours, _), *_) = run(live, PROMPTS[:1], greedy(TOKENS, ratio=1.0, head_share=SHARE))
    assert ours == plain
    assert not chosen
