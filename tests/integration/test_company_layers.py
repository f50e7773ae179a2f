"""The offloading connector beside ours where layers that look things up keep more than others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qm_vllm.layers import WINDOW_QUERIES
from tests.engines import random_prompt
from tests.families import make_model
from tests.integration.generate import greedy, run
from tests.integration.test_company import (
    BLOCK,
    CONFIG,
    IDS,
    LOADED,
    STEPS,
    alone,
    counts,
    figures,
    forget,
    in_company,
    storm,
)
from tests.native_reference import NativeReference

__all__ = ["alone"]  # a fixture
SHARE = 0.6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model("llama", tmp_path_factory.mktemp("layers"))


@pytest.fixture(scope="module")
def reference(folder):
    return NativeReference(str(folder))


@pytest.fixture(scope="module", params=["sync", "async"])
def llm(request, folder, reference):
    config = replace(CONFIG, delivery="native", layer_share=SHARE)
    with in_company(folder, request.param == "async", blocks=216, config=config) as llm:
        yield llm


def test_a_document_and_a_result_come_back_from_host_memory(live, reference):
    want = reference.generate(
        IDS, block_size=BLOCK, max_tokens=STEPS, ratio=0.4, special=(0, 1, 2), first=True,
        layer_share=SHARE,
    )
    for _ in range(2):
        ((tokens, report),) = run(live, [IDS], greedy(STEPS, details=True))
        chosen = want.reported(report)
        assert report["kept_by_layers"]["looking_up"] == len(want.kept)
        assert tokens[: chosen.decided()] == chosen.tokens[: chosen.decided()]
        forget(live)
    assert report["prefill_cached_tokens"] == (len(IDS) - WINDOW_QUERIES) // BLOCK * BLOCK
    run(live, [IDS], greedy(STEPS))
    ((remembered, _),) = run(live, [IDS], greedy(STEPS))
    before = counts(live)
    forget(live)
    ((tokens, report),) = run(live, [IDS], greedy(STEPS))
    assert report["cached"]
    assert tokens == remembered
    assert counts(live)[LOADED] > before[LOADED]


def test_aborts_and_preemption_leave_both_what_they_had(live, alone):
    """32 streams, too few blocks for them: all are answered, and host memory holds what it says."""
    prompts = [random_prompt(200 + 61 * number, number) for number in range(14)]
    ways = [greedy(STEPS), greedy(STEPS, ratio=0.2)]
    want = {
        (which, way): list(alone(prompts[which], params).outputs[0].token_ids)
        for which in (0, 7) for way, params in enumerate(ways)
    }
    done = storm(live, prompts, 100, seed=1)
    assert len(done) > 60
    assert all(out.outputs[0].finish_reason == "length" for _, _, out in done.values())
    for (which, way), tokens in want.items():
        ((again, _),) = run(live, [prompts[which]], ways[way])
        assert again == tokens
    forget(live)
    params = greedy(2, enabled=False)
    params.logprobs = 1
    stored = live.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    for ids, out in zip(prompts, stored, strict=True):
        assert figures(out) == pytest.approx(figures(alone(ids, params)), abs=2e-5)
