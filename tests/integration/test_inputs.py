"""Inputs and orders of arrival that break such systems: in one engine of 120 blocks."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from qm_vllm import QuickMergeConfig
from tests.engines import engine, random_prompt, scheduler_of
from tests.integration.generate import greedy, run

BLOCKS, SIZE = 120, 32
LONGEST = 3800


@pytest.fixture(scope="module")
def llm(tiny_models):
    config = QuickMergeConfig(ratio=0.4, encoder_chunk_tokens=256, max_live_jobs=1)
    with engine(
        tiny_models("llama"), config, num_gpu_blocks_override=BLOCKS, max_model_len=LONGEST,
        scheduling_policy="priority", enable_prompt_embeds=True, skip_tokenizer_init=True,
    ) as llm:
        yield llm


def add(llm, name: str, ids: list[int], tokens: int = 4, priority: int = 0, **options) -> None:
    llm.llm_engine.add_request(
        name, {"prompt_token_ids": list(ids)}, greedy(tokens, **options), priority=priority
    )


def steps(llm, done: dict, most: int, arrivals=()) -> None:
    """Step until all is done, after each step with one more arrival."""
    arrivals = iter(arrivals)
    for _ in range(most):
        for out in llm.llm_engine.step():
            if out.finished:
                done[out.request_id] = out
        one = next(arrivals, None)
        if one is not None:
            add(llm, *one)
        elif not llm.llm_engine.has_unfinished_requests():
            return
    raise AssertionError(f"not done after {most} steps: {sorted(done)}")


def told(out) -> dict:
    return out.kv_transfer_params["quickmerge"]


def test_an_urgent_prompt_is_begun_before_less_urgent_ones(live, monkeypatch):
    board, begun, done = scheduler_of(live).connector.scheduler_side.board, [], {}
    take = board.take_new

    def watched(*args, **kwargs):
        specs = take(*args, **kwargs)
        begun.extend(len(spec.token_ids) for spec in specs)
        return specs

    monkeypatch.setattr(board, "take_new", watched)
    lengths = [700 + number for number in range(10)]
    for length in lengths:
        add(live, str(length), random_prompt(length, length), priority=5)
    live.llm_engine.step()
    before = list(begun)
    assert before == lengths[:1]
    add(live, "short", random_prompt(300, 1), priority=0)
    add(live, "long", random_prompt(1500, 2), priority=0)
    steps(live, done, 400)
    assert begun[:12] == [*before, 300, 1500, *lengths[1:]]
    assert len(done) == 12
    assert {told(out)["status"] for out in done.values()} == {"compressed"}


@pytest.mark.parametrize(("delivery", "status"), [
    ("inject", "compressed"), ("native", "untouched"),
])
def test_short_prompts_flow_beside_one_that_takes_all_blocks(live, delivery, status):
    """Encoded it fits just so, prefilled by vLLM the result has no room beside the prompt."""
    done: dict = {}
    shorts = [(f"short {number}", random_prompt(40, number)) for number in range(30)]
    for name, ids in shorts[:10]:
        add(live, name, ids)
    add(live, "big", random_prompt(LONGEST - 8, 3), delivery=delivery)
    steps(live, done, 120, shorts[10:])
    assert len(done) == 31
    report = told(done["big"])
    assert report["status"] == status
    if status == "untouched":
        assert "KV blocks" in report["reason"]
    assert all(len(out.outputs[0].token_ids) == 4 for out in done.values())


def test_ids_embeddings_and_compressed_prompts_of_one_length_share_nothing(live, tiny_models):
    from safetensors.torch import load_file

    table = load_file(tiny_models("llama") / "model.safetensors")["model.embed_tokens.weight"]
    ids = random_prompt(640, 5)
    ((_, report),) = run(live, [ids], greedy(1, details=True))
    kept = [ids[index] for index in report["details"]["kept_indices"]]
    prompts = {
        "compressed": ({"prompt_token_ids": ids}, greedy(8)),
        "ids": ({"prompt_token_ids": kept}, greedy(8, enabled=False)),
        "embeddings": ({"prompt_embeds": table[kept]}, greedy(8)),
    }
    seen: dict[str, set] = {name: set() for name in prompts}
    for order in (list(prompts), list(prompts)[::-1]):
        scheduler_of(live).reset_prefix_cache(reset_connector=True)
        for name in order:
            (out,) = live.generate(*prompts[name], use_tqdm=False)
            assert out.num_cached_tokens == 0
            seen[name].add(tuple(out.outputs[0].token_ids))
    assert [len(tokens) for tokens in seen.values()] == [1, 1, 1]
    assert seen["ids"] == seen["embeddings"]


def test_no_client_can_name_the_salt_of_compressed_blocks(live):
    """Whoever knows a prompt could put other blocks in their place otherwise."""
    ids = random_prompt(640, 6)
    add(live, "r", ids, details=True)
    done: dict = {}
    board = scheduler_of(live).connector.scheduler_side.board
    (key,) = board.entries
    steps(live, done, 40)
    kept = [ids[index] for index in told(done["r"])["details"]["kept_indices"]]
    for salt in (key, hashlib.sha256(f"|{key}".encode()).hexdigest()):
        prompt = {"prompt_token_ids": kept, "cache_salt": salt}
        (out,) = live.generate(prompt, greedy(1, enabled=False), use_tqdm=False)
        assert out.num_cached_tokens == 0


CHOICE = """
import torch
from qm_vllm import QuickMergeConfig
from qm_vllm.compress import compress

table = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
ids = [3] * 200 + [number % 16 for number in range(200)] + [5] * 200
found = compress(table[ids], QuickMergeConfig(saliency="entropy", ratio=0.25))
print(found.kept.tolist())
"""


def test_two_processes_keep_the_same_of_a_prompt_full_of_equal_tokens():
    seen = {
        subprocess.run(
            [sys.executable, "-c", CHOICE], env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1
    assert seen.pop().count(",") == 149
