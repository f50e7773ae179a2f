"""Jobs beside each other in one worker: fair turns, and the bound on their source tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.jobs.compression_job import CompressionJob
from tests.engines import engine, random_prompt, scheduler_of
from tests.integration.generate import greedy, run
from tests.waits import Waits


@pytest.fixture(scope="module")
def llm(tiny_models):
    config = QuickMergeConfig(
        ratio=0.4, delivery="inject", max_live_jobs=3, encoder_chunk_tokens=64,
        max_source_tokens=3000,
    )
    with engine(tiny_models("llama"), config, skip_tokenizer_init=True) as llm:
        yield llm


def first_tokens(llm, requests):
    """Request ids in the order of their first tokens, and everything they said."""
    for name, ids in requests.items():
        llm.llm_engine.add_request(name, {"prompt_token_ids": ids}, greedy(12))
    order, said = [], {}
    while llm.llm_engine.has_unfinished_requests():
        for out in llm.llm_engine.step():
            if out.request_id not in order:
                order.append(out.request_id)
            said[out.request_id] = list(out.outputs[0].token_ids)
    return order, said


def test_a_short_prompt_does_not_wait_for_a_long_ones_job(llm):
    requests = {"long": random_prompt(2600, 1), "short": random_prompt(300, 2)}
    order, said = first_tokens(llm, requests)
    assert order == ["short", "long"]
    scheduler_of(llm).reset_prefix_cache(reset_connector=True)
    for name, ids in requests.items():  # turns change nothing in what comes out
        assert run(llm, [ids], greedy(12))[0][0] == said[name]
        scheduler_of(llm).reset_prefix_cache(reset_connector=True)


def test_jobs_share_the_work_evenly(llm, monkeypatch):
    spent: dict[str, list[int]] = {}
    original = CompressionJob.advance

    def watched(self):
        cost = original(self)
        spent.setdefault(self.spec.key, []).append(cost)
        if len(spent) == 2 and self.result is None:
            totals = [sum(costs) for costs in spent.values()]
            largest = max(cost for costs in spent.values() for cost in costs)
            assert abs(totals[0] - totals[1]) <= largest
        return cost

    monkeypatch.setattr(CompressionJob, "advance", watched)
    first_tokens(llm, {"a": random_prompt(1000, 3), "b": random_prompt(1000, 4)})
    assert len(spent) == 2


def test_source_tokens_at_once_are_bounded(llm, monkeypatch):
    """Three prompts of 1300 tokens under a bound of 3000: two at a time."""
    live: set[str] = set()
    most = [0]
    start, advance = CompressionJob.__init__, CompressionJob.advance

    def begin(self, spec, *rest):
        live.add(spec.key)
        most[0] = max(most[0], len(live))
        start(self, spec, *rest)

    def go(self):
        cost = advance(self)
        if self.result is not None:
            live.discard(self.spec.key)
        return cost

    monkeypatch.setattr(CompressionJob, "__init__", begin)
    monkeypatch.setattr(CompressionJob, "advance", go)
    order, _ = first_tokens(llm, {name: random_prompt(1300, i) for i, name in enumerate("abc")})
    assert order[-1] == "c"
    assert most[0] == 2


def test_a_prompt_beyond_the_bound_is_left_to_vllm(llm):
    ids = random_prompt(3100, 5)
    ((tokens, report),) = run(llm, [ids], greedy(6))
    assert report["status"] == "untouched"
    assert "3100 prompt tokens are more than max_source_tokens=3000" in report["reason"]
    assert tokens == run(llm, [ids], greedy(6, enabled=False))[0][0]


def test_a_job_that_keeps_other_tokens_the_second_time_is_not_trusted(llm, monkeypatch):
    """As after new weights: blocks are gone, the memo is not, and the redo differs."""
    ids = random_prompt(700, 6)
    ((first, _),) = run(llm, [ids], greedy(6))
    scheduler_of(llm).reset_prefix_cache()
    original = CompressionJob._choose

    def other(self, evidence):
        choice = original(self, evidence)
        moved = choice.kept.clone()
        free = sorted(set(range(len(ids))) - set(choice.kept.tolist()))
        moved[len(moved) // 2] = free[0]
        return replace(choice, kept=moved.sort().values)

    monkeypatch.setattr(CompressionJob, "_choose", other)
    ((tokens, report),) = run(llm, [ids], greedy(6))
    assert len(tokens) == len(first)
    assert "other tokens the second time" in report["notes"][0]


def test_ranges_of_a_request_must_lie_in_its_prompt(llm):
    ids = random_prompt(500, 7)
    ((_, report),) = run(llm, [ids], greedy(4, protect_ranges=[[100, 501]]))
    assert report["status"] == "untouched"
    assert "(100, 501), but the prompt has 500 tokens" in report["reason"]
    ((_, report),) = run(llm, [ids], greedy(4, protect_ranges=[[480, 500]], details=True))
    assert set(range(480, 500)) <= set(report["details"]["kept_indices"])


def test_roles_without_a_chat_template_are_an_error_that_says_so(llm):
    ((_, report),) = run(llm, [random_prompt(500, 8)], greedy(4, keep_roles="system"))
    assert "keep_roles cannot work here: the model has no chat template" in report["reason"]


def test_blocks_are_shared_by_equal_prompt_options_and_salt_alone(llm):
    """Hashes of every block, for one prompt under each thing that must separate it."""
    ids = random_prompt(640, 9)
    asked = {
        "one": ({}, None), "again": ({}, None), "salt a": ({}, "a"), "salt b": ({}, "b"),
        "other ratio": ({"ratio": 0.5}, None), "other score": ({"saliency": "norm"}, None),
        "other depth": ({"encoder_layers": 3}, None), "plain": ({"enabled": False}, None),
        "plain, salt a": ({"enabled": False}, "a"),
    }
    for name, (options, salt) in asked.items():
        prompt = {"prompt_token_ids": ids} | ({"cache_salt": salt} if salt else {})
        llm.llm_engine.add_request(name, prompt, greedy(40, **options))
    scheduler, hashes = scheduler_of(llm), {}
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        for request in scheduler.running:
            name = request.request_id.rpartition("-")[0] or request.request_id
            hashes[name] = set(request.block_hashes)
    assert hashes.keys() == asked.keys()
    assert hashes["one"] == hashes["again"]
    different = [hashes[name] for name in asked if name != "again"]
    assert sum(map(len, different)) == len(set.union(*different))


@pytest.mark.parametrize("length", [60, 900])
def test_a_job_reads_from_the_device_once_and_at_its_end(llm, monkeypatch, length):
    seen: list[list[str]] = []
    original = CompressionJob.advance

    def watched(self):
        with Waits() as waits:
            cost = original(self)
        seen.append(waits.names)
        return cost

    monkeypatch.setattr(CompressionJob, "advance", watched)
    ((_, report),) = run(llm, [random_prompt(length, 5)], greedy(2, min_tokens=2, min_kept=2))
    assert report["status"] == "compressed"
    # The first counts protected positions in a mask that is still on the host.
    assert [name for names in seen for name in names] == ["__int__", "tolist"]
    assert seen[-1] == ["tolist"]
