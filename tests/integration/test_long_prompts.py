"""Prompts beyond ``max_model_len``: served as by an engine of greater length, or refused."""

from __future__ import annotations

import pytest
from vllm.exceptions import VLLMValidationError

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.parts import TAIL
from tests.engines import engine, forced_async, random_prompt
from tests.families import build, make_model
from tests.integration.generate import greedy, run
from tests.parted_reference import PartedReference

LONG = {name: random_prompt(size, seed) for seed, (name, size) in enumerate(
    {"1500": 1500, "1100": 1100, "exactly": 512}.items()
)}
CONFIG = QuickMergeConfig(ratio=0.25, delivery="auto", max_source_tokens=6000, details=True)


@pytest.fixture(scope="module")
def expected(tiny_models):
    with engine(tiny_models("llama"), CONFIG, skip_tokenizer_init=True,
                enable_prefix_caching=False) as llm:
        return {name: run(llm, [ids], greedy(12)) for name, ids in LONG.items()}


@pytest.fixture(scope="module")
def llm(tiny_models, expected):  # one engine at a time
    with engine(tiny_models("llama"), CONFIG, skip_tokenizer_init=True, max_model_len=512) as llm:
        yield llm


@pytest.mark.parametrize("name", LONG)
def test_a_long_prompt_is_served_as_by_an_engine_of_greater_length(llm, expected, name):
    ((tokens, report),) = run(llm, [LONG[name]], greedy(12))
    ((theirs, their_report),) = expected[name]
    assert tokens == theirs
    assert report["status"] == "compressed"
    for key in ("source_tokens", "kept_tokens", "kv_blocks", "delivery", "positions", "details"):
        assert report[key] == their_report[key], key


def test_an_answer_has_what_the_length_leaves_beside_what_is_kept(llm):
    """Asked for more than that, it ends there."""
    ((tokens, report),) = run(llm, [LONG["1500"]], greedy(512))
    assert len(tokens) == 512 - report["kept_tokens"]
    ((plain, _),) = run(llm, [random_prompt(200, 9)], greedy(512))
    assert len(plain) == 512 - 200


def test_beyond_the_bound_vllm_refuses_as_ever(llm):
    with pytest.raises(VLLMValidationError, match="maximum model length of 6001"):
        run(llm, [random_prompt(6001, 3)], greedy(1))


@pytest.mark.parametrize(("size", "options", "max_tokens", "said"), [
    (1500, {}, 200, ("1500 tokens", "max_model_len is 512", "375 tokens would be kept",
                     "max_tokens=200")),
    (1500, {"ratio": 0.9}, 1, ("1350 tokens would be kept", "max_tokens=1")),
    (1500, {"enabled": False}, 1, ("disabled for this request",)),
])
def test_what_does_not_fit_is_refused_before_anything_runs(llm, size, options, max_tokens, said):
    with pytest.raises(VLLMValidationError, match="served compressed or not at all") as caught:
        run(llm, [random_prompt(size, 3)], greedy(max_tokens, **options))
    assert all(part in str(caught.value) for part in said), caught.value


@pytest.mark.parametrize(("options", "said"), [
    ({"delivery": "native"}, "vLLM reads no more than max_model_len=512"),
    ({"min_tokens": 5000}, "fewer than min_tokens=5000"),
    ({"protect_ranges": ((0, 600),)}, "would be kept"),
])
def test_what_only_the_engine_knows_ends_that_request_alone(llm, expected, options, said):
    """The engine goes on, and those beside it get their answers."""
    bad, good = greedy(4, **options), greedy(12)
    prompts = [{"prompt_token_ids": LONG[name]} for name in ("1500", "1100")]
    refused, served = llm.generate(prompts, [bad, good], use_tqdm=False)
    report = refused.kv_transfer_params["quickmerge"]
    assert refused.outputs[0].finish_reason == "error"
    assert refused.outputs[0].token_ids == []
    assert report["status"] == "refused"
    assert said in report["reason"], report
    assert list(served.outputs[0].token_ids) == expected["1100"][0][0]


@pytest.fixture(scope="module")
def short_model(tmp_path_factory):
    """A model that was trained for 1,024 positions."""
    folder = tmp_path_factory.mktemp("short") / "llama"
    build("llama", 0, num_hidden_layers=6, max_position_embeddings=1024).save_pretrained(folder)
    return folder


def bounds_of(count: int, parts: int) -> list[int]:
    return [count * index // parts for index in range(parts + 1)]


@pytest.mark.parametrize(("caching", "ahead"), [(True, False), (False, True)])
def test_beyond_what_the_model_reads_a_prompt_is_read_in_parts(
    short_model, caching, ahead, expected
):
    ids = random_prompt(2600, 5)
    reference = PartedReference(str(short_model))
    config = QuickMergeConfig(ratio=0.15, max_source_tokens=4000, details=True)
    with forced_async(ahead), engine(
        short_model, config, skip_tokenizer_init=True, max_model_len=1024,
        enable_prefix_caching=caching, async_scheduling=ahead,
    ) as llm:
        ((tokens, report),) = run(llm, [ids], greedy(12))
        ((_, refused),) = run(llm, [ids], greedy(12, min_tokens=3000))
        ((again, _),) = run(llm, [ids], greedy(12))
    assert refused["status"] == "refused"
    # In four parts, the third would be 650 tokens and the tail's 256 behind 192 kept ones.
    want = reference.generate_parted(
        ids, bounds_of(len(ids), 5), ratio=0.15, block_size=32, max_tokens=12, E=4, tail=TAIL,
        special=frozenset({0, 1, 2}), found=report["details"]["kept_indices"],
    )
    assert report["status"] == "compressed", report
    assert report["details"]["kept_indices"] == want.kept
    assert report["positions"] == "compact"
    assert tokens == again == want.tokens
    assert report["kv_blocks"] == -(-(len(want.kept) + 11) // 32)


def test_in_a_small_cache_parts_keep_the_positions_that_the_model_knows(tiny_models):
    ids = LONG["1500"]
    config = QuickMergeConfig(ratio=0.25, max_source_tokens=4000, details=True)
    with engine(
        tiny_models("llama"), config, skip_tokenizer_init=True, max_model_len=512,
        num_gpu_blocks_override=44,
    ) as llm:
        ((tokens, report),) = run(llm, [ids], greedy(12))
    want = PartedReference(str(tiny_models("llama"))).generate_parted(
        ids, bounds_of(len(ids), 3), ratio=0.25, block_size=32, max_tokens=12, E=4, tail=TAIL,
        special=frozenset({0, 1, 2}), source=True, found=report["details"]["kept_indices"],
    )
    assert report["positions"] == "source"
    assert report["details"]["kept_indices"] == want.kept
    assert tokens == want.tokens


@pytest.mark.parametrize("family", ["gemma", "qwen3", "smollm3", "phi"])
def test_other_models_serve_it_so_too(family, tmp_path):
    """Also those whose table of angles is ours, because vLLM has none for them."""
    folder, answers = make_model(family, tmp_path), []
    for length in (4096, 512):
        with engine(folder, CONFIG, skip_tokenizer_init=True, max_model_len=length) as llm:
            options = {"delivery": "inject"}
            ((tokens, report),) = run(llm, [LONG["1500"]], greedy(12, **options))
        assert report["status"] == "compressed", report
        answers.append((tokens, report["details"]["kept_indices"], report["positions"]))
    assert answers[0] == answers[1]
