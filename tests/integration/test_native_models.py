"""Every family in both deliveries: keep-all is plain vLLM, K < N is transformers'."""

from __future__ import annotations

import math

import pytest

from qm_vllm import QuickMergeConfig
from tests.engines import engine, random_prompt, scheduler_of
from tests.families import FAMILIES, NATIVE_ONLY, make_model
from tests.inject_reference import InjectReference
from tests.integration.generate import greedy, run
from tests.native_reference import NativeReference

BLOCK, TOKENS = 32, 16
PROMPTS = [random_prompt(length, seed) for seed, length in ((3, 300), (4, 701))]


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return make_model(family, tmp_path_factory.mktemp("models"))


def expect(reference):
    return [
        reference.generate(ids, block_size=BLOCK, max_tokens=TOKENS, ratio=0.4, special=(0, 1, 2))
        for ids in PROMPTS
    ]


@pytest.fixture(scope="module")
def expected(family, folder):
    """Made before the engine: vLLM changes transformers' classes where it runs through them."""
    found = {"native": expect(NativeReference(str(folder)))}
    if family not in NATIVE_ONLY:
        found["inject"] = expect(InjectReference(str(folder)))
    return found


@pytest.fixture(scope="module")
def llm(folder, expected):
    import torch
    from vllm.model_executor.models import registry

    config = QuickMergeConfig(delivery="native", head_share=0.0, layer_share=0.0)
    # Cohere's norm is compiled on its own, which takes longer than all of this.
    with pytest.MonkeyPatch.context() as patch, torch.compiler.set_stance("force_eager"):
        # Here, not in a process that imports everything again.
        patch.setattr(registry, "_run_in_subprocess", lambda look: look())
        with engine(folder, config, skip_tokenizer_init=True) as llm:
            yield llm


@pytest.fixture(params=["native", "inject"])
def delivery(request, family):
    if request.param == "inject" and family in NATIVE_ONLY:
        pytest.skip(f"native only: {NATIVE_ONLY[family]}")
    return request.param


def test_keep_all_equals_plain_vllm(llm, delivery):
    plain = run(llm, PROMPTS, greedy(TOKENS, enabled=False))
    ours = run(llm, PROMPTS, greedy(TOKENS, ratio=1.0, delivery=delivery))
    for (want, _), (got, report), ids in zip(plain, ours, PROMPTS, strict=True):
        assert report["status"] == "compressed", report
        assert (report["delivery"], report["kept_tokens"]) == (delivery, len(ids))
        assert got == want


def test_fewer_positions_equal_the_reference(llm, expected, delivery):
    for ids, want in zip(PROMPTS, expected[delivery], strict=True):
        params = greedy(TOKENS, ratio=0.4, details=True, delivery=delivery)
        params.logprobs = 0
        (out,) = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
        report = out.kv_transfer_params["quickmerge"]
        assert report["status"] == "compressed", report
        want = want.of(report["details"]["kept_indices"])
        assert report["details"]["kept_indices"] == want.kept
        if delivery == "native":
            assert report["first_token"] == "kept"  # whose log probability was asked for
        else:
            assert report["positions"] == "source"
        want.check(out.outputs[0], 2)


def test_a_family_that_is_not_run_in_the_model_passes_untouched_and_says_why(llm, family):
    if family not in NATIVE_ONLY:
        pytest.skip("it is run in the model")
    ((plain, _),) = run(llm, PROMPTS[:1], greedy(TOKENS, enabled=False))
    ((got, report),) = run(llm, PROMPTS[:1], greedy(TOKENS, ratio=0.4, delivery="inject"))
    assert report["status"] == "untouched"
    assert NATIVE_ONLY[family] in report["reason"]
    assert got == plain


def test_blocks_are_those_of_k_positions_in_each_group(llm, delivery):
    scheduler = scheduler_of(llm)
    manager = scheduler.kv_cache_manager
    groups = manager.coordinator.single_type_managers
    idle = manager.block_pool.get_num_free_blocks()
    params = greedy(40, ratio=0.3, delivery=delivery)
    llm.llm_engine.add_request("r", {"prompt_token_ids": PROMPTS[1]}, params)
    steps = 0
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        request = scheduler.requests.get("r") or next(iter(scheduler.requests.values()), None)
        if request is None or not request.num_output_tokens:
            continue
        steps += 1
        positions = request.num_prompt_tokens + request.num_output_tokens - 1
        assert request.num_prompt_tokens < 0.3 * len(PROMPTS[1])
        for group in groups:
            held = [block for block in group.req_to_blocks[request.request_id]
                    if not block.is_null]
            window = getattr(group, "sliding_window", None)
            if window is None:
                assert len(held) == math.ceil(positions / BLOCK)
            else:
                assert len(held) <= math.ceil(window / BLOCK) + 1
    assert steps >= 38  # natively the first token came before
    assert manager.block_pool.get_num_free_blocks() == idle
