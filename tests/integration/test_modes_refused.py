"""What vLLM refuses on a CPU, what is left alone, and speculation."""

from __future__ import annotations

import re
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.requests.demands import Room
from qm_vllm.engine.requests.planning import plan_request
from qm_vllm.engine.untouched import Untouched
from qm_vllm_patches.requests import arrival
from tests.engines import engine, random_prompt
from tests.integration.generate import greedy, run
from tests.settings import facts

IDS, STEPS = random_prompt(500, 1), 12
OPTIONS = {"skip_tokenizer_init": True}


def test_model_runner_v2_needs_triton(tiny_models, monkeypatch):
    from vllm.triton_utils import HAS_TRITON

    if HAS_TRITON:
        pytest.skip("this machine has a Triton: scripts/gpu_check.py runs V2")
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with (
        pytest.raises(ValueError, match="Model Runner V2 requires Triton"),
        engine(tiny_models("llama"), QuickMergeConfig(), **OPTIONS),
    ):
        pass


def test_sleep_mode_is_refused_by_vllm_on_a_cpu(tiny_models):
    if torch.cuda.is_available():
        pytest.skip("a CUDA device can sleep: test_cuda.py")
    with (
        pytest.raises(ValueError, match="Sleep mode is not supported"),
        engine(tiny_models("llama"), QuickMergeConfig(), enable_sleep_mode=True, **OPTIONS),
    ):
        pass


def test_fp8_kv_cache_needs_avx512_on_a_cpu(tiny_models):
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown

    if torch.cpu._is_avx512_supported() or torch.cpu._is_amx_tile_supported():
        pytest.skip("this CPU could hold an fp8 KV cache, which was not tried")
    if torch.cuda.is_available():
        pytest.skip("a CUDA device can hold an fp8 KV cache: test_cuda.py")
    try:
        with (
            pytest.raises(NotImplementedError, match="requires x86 with AVX-512 or AMX"),
            engine(tiny_models("llama"), QuickMergeConfig(), kv_cache_dtype="fp8", **OPTIONS),
        ):
            pass
    finally:
        ensure_kv_transfer_shutdown()
        cleanup_dist_env_and_memory(shutdown_ray=False)


@pytest.mark.parametrize(("changes", "options", "words"), [
    ({}, {"delivery": "inject"}, 'delivery="inject" sees no more than the ids'),
    ({}, {"delivery": "prefill"}, 'delivery="prefill" sees no more than the ids'),
    ({}, {"delivery": "auto", "positions": "compact"}, "positions='compact' needs"),
    ({"offset": 480}, {"delivery": "native"}, "put text behind them"),
    ({"data": {"address": 7}}, {"delivery": "native"}, 'use mm_processor_cache_type="lru"'),
    ({"modality": "prompt_embeds"}, {"delivery": "native"}, "embeddings instead of token ids"),
])
def test_pictures_that_cannot_be_compressed_leave_a_prompt_alone(changes, options, words):
    with pytest.raises(Untouched, match=re.escape(words)):
        plan_request(pictured(**changes), QuickMergeConfig(**options), facts(), Room())


def test_what_a_picture_shows_is_part_of_a_jobs_key():
    """And its id, which is a special one, is not kept for that."""
    config, known = QuickMergeConfig(delivery="native"), facts(special_ids=frozenset({5, 6}))
    plans = [
        plan_request(pictured(**one), config, known, Room())
        for one in ({}, {}, {"identifier": "other"}, {"offset": 101})
    ]
    keys = [plan.spec.key for plan in plans]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert set(plans[0].spec.special_positions).isdisjoint(range(100, 120))


def pictured(offset=100, identifier="one", modality="image", data=None):
    """A request with one picture of 20 tokens."""
    from vllm import SamplingParams
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
    from vllm.v1.request import Request

    ids = [*IDS[:offset], *[5] * 20, *IDS[offset + 20 :]]
    feature = MultiModalFeatureSpec(data, modality, identifier, PlaceholderRange(offset, 20))
    return arrival(Request(
        "r", ids, SamplingParams(max_tokens=4), None, mm_features=[feature]
    ))


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
