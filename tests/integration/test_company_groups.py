"""The offloading connector beside ours where layers have block tables of their own."""

from __future__ import annotations

import pytest

from tests.engines import random_prompt
from tests.families import make_model
from tests.integration.generate import greedy, run
from tests.integration.test_company import (
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Most of its layers see a window of what came before, in groups of their own."""
    return make_model("gemma-3", tmp_path_factory.mktemp("groups"))


@pytest.fixture(scope="module", params=["sync", "async"])
def llm(request, folder):
    with in_company(folder, request.param == "async", blocks=120) as llm:
        yield llm


def test_a_result_comes_back_from_host_memory_and_a_document_is_computed(live, folder):
    """Of layers with windows, vLLM stores what they hold at the prompt's end: the last 64 tokens,
    whose queries must be seen, cannot be computed over that."""
    want = NativeReference(str(folder)).generate(
        IDS, block_size=32, max_tokens=STEPS, ratio=0.4, special=(0, 1, 2), first=True
    )
    before = counts(live)
    for _ in range(2):
        params = greedy(STEPS, delivery="native", details=True)
        ((tokens, report),) = run(live, [IDS], params)
        chosen = want.of(report["details"]["kept_indices"])
        assert report["details"]["kept_indices"] == chosen.kept
        assert tokens[: chosen.decided()] == chosen.tokens[: chosen.decided()]
        assert report["prefill_cached_tokens"] == 0
        forget(live)
    assert counts(live)[LOADED] == before[LOADED]
    run(live, [IDS], greedy(STEPS, delivery="native"))
    ((want, _),) = run(live, [IDS], greedy(STEPS, delivery="native"))
    forget(live)
    ((tokens, report),) = run(live, [IDS], greedy(STEPS, delivery="native"))
    assert report["cached"]
    assert tokens == want
    assert counts(live)[LOADED] > before[LOADED]


def test_aborts_and_preemption_leave_both_what_they_had(live, alone):
    """32 streams, too few blocks for them: all are answered, and host memory holds what it says."""
    prompts = [random_prompt(200 + 61 * number, number) for number in range(14)]
    done = storm(live, prompts, 100, seed=1)
    assert len(done) > 60
    assert all(out.outputs[0].finish_reason == "length" for _, _, out in done.values())
    forget(live)
    params = greedy(2, enabled=False)
    params.logprobs = 1
    stored = live.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    for ids, out in zip(prompts, stored, strict=True):
        assert figures(out) == pytest.approx(figures(alone(ids, params)), abs=2e-5)
