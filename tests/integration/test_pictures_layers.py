"""Prompts with pictures in layers that do not all keep as much, positions along three axes."""

from __future__ import annotations

import pytest

from qm_vllm import QuickMergeConfig
from tests.engines import forced_async
from tests.integration.test_pictures import ASK, PROMPTS, STEPS, greedy, make_model, serving, shown
from tests.pictures_reference import PictureReference

SHARE = 0.6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model("qwen2-vl", tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def reference(folder):
    return PictureReference(str(folder), folder.name)


@pytest.fixture(scope="module")
def llm(folder, reference):
    config = QuickMergeConfig(
        delivery="native", min_tokens=64, head_share=0.0, layer_share=SHARE
    )
    with forced_async(True), serving(
        folder, config, max_num_batched_tokens=256, max_num_seqs=8,
    ) as llm:
        yield llm


@pytest.mark.parametrize("name", PROMPTS)
def test_layers_keep_what_the_reference_keeps(llm, reference, name):
    params = greedy(STEPS, ratio=0.4, details=True)
    params.logprobs = 0
    (out,) = llm.generate([shown(*PROMPTS[name])], params, use_tqdm=False)
    report = out.kv_transfer_params["quickmerge"]
    assert report["status"] == "compressed", report
    want = reference.answer(*PROMPTS[name], layer_share=SHARE, **ASK)
    assert report["kept_by_layers"]["looking_up"] == max(want.sizes.values())
    want.reported(report).check(out.outputs[0], 1)
