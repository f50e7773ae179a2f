"""A prompt with a video: its states are given, because a CPU machine here reads no frames.

It has no more frames than tokens on a side: behind a longer one transformers and vLLM go on from
different positions, with or without us.
"""

from __future__ import annotations

import pytest
import torch

from qm_vllm import QuickMergeConfig
from tests.engines import random_prompt, scheduler_of
from tests.integration.generate import greedy
from tests.integration.left_empty import left_empty
from tests.pictures import START, STOP, VIDEO, WORDS, make_model, serving
from tests.pictures_reference import PictureReference

FRAMES, FIRST, STEPS = 4, 31, 12
IDS = [*random_prompt(FIRST - 1, 1, WORDS), START, VIDEO, STOP, *random_prompt(70, 2, WORDS)]


def film(seed):
    """Four frames of 16 tokens, of which the second half shows what the first did."""
    states = torch.randn(FRAMES // 2, 16, 128, generator=torch.Generator().manual_seed(seed)) * 0.12
    return {
        "video_embeds": torch.cat((states, states)).flatten(0, 1),
        "video_grid_thw": torch.tensor([[FRAMES, 8, 8]]),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model("qwen2-vl", tmp_path_factory.mktemp("video"))


@pytest.fixture(scope="module")
def reference(folder):
    return PictureReference(str(folder), folder.name)


@pytest.fixture(scope="module")
def llm(folder, reference):
    config = QuickMergeConfig(delivery="native", min_tokens=64, head_share=0.0)
    with serving(folder, config, film=True, max_num_batched_tokens=128) as llm:
        yield llm


def ask(llm, shown, **options):
    params = greedy(STEPS, **options)
    params.logprobs = 0
    data = {"prompt_token_ids": IDS, "multi_modal_data": {"video": shown}}
    (out,) = llm.generate([data], params, use_tqdm=False)
    return out.outputs[0], out.kv_transfer_params["quickmerge"]


def test_keep_all_equals_plain_vllm(llm):
    with left_empty(llm):
        plain, before = ask(llm, film(1), enabled=False)
        ours, report = ask(llm, film(1), ratio=1.0)
        assert report["status"] == "compressed", report
        assert report["kept_tokens"] == before["source_tokens"] == len(IDS) - 1 + FRAMES * 16
        assert ours.token_ids == plain.token_ids


def test_fewer_positions_equal_the_reference(llm, reference):
    with left_empty(llm):
        answers = []
        for seed in (1, 2):
            found, report = ask(llm, film(seed), ratio=0.4, details=True)
            assert report["status"] == "compressed", report
            kept = report["details"]["kept_indices"]
            want = reference.answer_film(
                IDS, film(seed), block_size=32, max_tokens=STEPS, ratio=0.4
            ).of(kept)
            assert kept == want.kept
            want.check(found, 6)
            assert 3 < sum(FIRST <= one < FIRST + FRAMES * 16 for one in kept) < 50
            answers.append(list(found.token_ids))
        assert answers[0] != answers[1]
        assert scheduler_of(llm).encoder_cache_manager.request_cached_ids == {}
