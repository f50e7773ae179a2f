"""``encoder_batch``: prompts that wait together share a pass, and come out as alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qm_vllm import QuickMergeConfig
from qm_vllm.engine.dense.runner import DenseRunner
from qm_vllm.engine.jobs.encoder_pass import EncoderPass
from tests.engines import engine, random_prompt, scheduler_of
from tests.integration.generate import greedy, run

SIZES = (300, 420, 257, 700)


@pytest.fixture(scope="module")
def llm(tiny_models):
    config = QuickMergeConfig(ratio=0.4, encoder_batch=True, encoder_chunk_tokens=1024)
    with engine(tiny_models("llama"), config, skip_tokenizer_init=True) as llm:
        yield llm


@pytest.fixture
def passes(monkeypatch):
    """Sizes of the prompts of every pass that began."""
    seen: list[tuple[int, ...]] = []
    original = EncoderPass.advance

    def watched(self):
        if not self.begun:
            seen.append(tuple(len(spec.token_ids) for spec in self.specs))
        return original(self)

    monkeypatch.setattr(EncoderPass, "advance", watched)
    return seen


def forget(llm) -> None:
    scheduler_of(llm).reset_prefix_cache(reset_connector=True)


@pytest.mark.parametrize("options", [
    {}, {"saliency": "entropy"}, {"delivery": "prefill"}, {"max_error": 0.3, "alpha": 0.5},
])
def test_prompts_that_wait_together_come_out_as_alone(llm, passes, options):
    prompts = [random_prompt(size, seed) for seed, size in enumerate(SIZES)]
    asked = greedy(12, details=True, **options)
    together = run(llm, prompts, asked)
    assert passes == [(300, 420, 257), (700,)]
    del passes[:]
    for prompt, (tokens, report) in zip(prompts, together, strict=True):
        forget(llm)
        ((alone, own),) = run(llm, [prompt], asked)
        assert tokens == alone
        assert report["details"]["kept_indices"] == own["details"]["kept_indices"]
        errors = [one.get("attention_error", 0.0) for one in (report, own)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-3)
        assert report["seconds"] > 0
    assert passes == [(size,) for size in SIZES]
    forget(llm)


def test_requests_with_other_depths_get_a_pass_of_their_own(llm, passes):
    for name, (seed, depth) in {"a": (1, 4), "b": (2, 3), "c": (3, 4)}.items():
        llm.llm_engine.add_request(
            name, {"prompt_token_ids": random_prompt(300, seed)}, greedy(4, encoder_layers=depth)
        )
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    assert sorted(passes) == [(300,), (300, 300)]


def test_a_pass_that_fails_leaves_each_prompt_to_its_own(llm, passes, monkeypatch):
    prompts = [random_prompt(300, seed) for seed in (11, 12)]
    expected = run(llm, prompts, greedy(8))
    forget(llm)
    original = DenseRunner.run_layer

    def fails_together(self, layer, stream, record, table=None):
        if len(stream.bounds) > 2 and layer == 2:
            raise MemoryError("too much at once")
        return original(self, layer, stream, record, table)

    monkeypatch.setattr(DenseRunner, "run_layer", fails_together)
    del passes[:]
    got = run(llm, prompts, greedy(8))
    assert passes == [(300, 300), (300,), (300,)]
    assert [tokens for tokens, _ in got] == [tokens for tokens, _ in expected]
    assert all(report["status"] == "compressed" for _, report in got)


def test_an_abort_in_the_middle_leaves_the_others_in_peace(llm):
    prompts = {name: random_prompt(300, seed) for seed, name in enumerate("xyz", 20)}
    expected = {name: run(llm, [ids], greedy(8))[0][0] for name, ids in prompts.items()}
    forget(llm)
    for name, ids in prompts.items():
        llm.llm_engine.add_request(name, {"prompt_token_ids": ids}, greedy(8))
    llm.llm_engine.abort_request(["y"])
    said = {}
    while llm.llm_engine.has_unfinished_requests():
        for out in llm.llm_engine.step():
            said[out.request_id] = list(out.outputs[0].token_ids)
    assert said == {name: expected[name] for name in "xz"}


def test_a_redo_keeps_what_was_kept_whatever_rounding_does(llm, monkeypatch):
    """Preempted after a shared pass: the redo runs alone, and another choice would not do."""
    from qm_vllm.engine.jobs import compression_job

    prompts = [random_prompt(300, seed) for seed in (31, 32)]
    expected = run(llm, prompts, greedy(40))
    forget(llm)
    scheduler = scheduler_of(llm)
    for name, ids in zip("pq", prompts, strict=True):
        llm.llm_engine.add_request(name, {"prompt_token_ids": ids}, greedy(40))
    while not any(request.num_output_tokens >= 5 for request in scheduler.running):
        llm.llm_engine.step()
    original = compression_job.choose

    def other(evidence, config, *, kept=None, **rest):
        choice = original(evidence, config, kept=kept, **rest)
        if kept is not None:
            return choice
        moved = (choice.kept - (choice.kept > 40).long()).unique()
        return replace(choice, kept=moved)  # a near tie that fell otherwise

    monkeypatch.setattr(compression_job, "choose", other)
    scheduler.reset_prefix_cache(reset_running_requests=True)
    finished = {}
    while llm.llm_engine.has_unfinished_requests():
        for out in llm.llm_engine.step():
            if out.finished:
                finished[out.request_id] = out
    for name, (tokens, _) in zip("pq", expected, strict=True):
        assert list(finished[name].outputs[0].token_ids) == tokens
        assert not finished[name].kv_transfer_params["quickmerge"].get("notes")
