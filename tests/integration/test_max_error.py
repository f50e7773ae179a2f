"""``max_error`` in the real engine: the reported figure and the chosen K, against transformers."""

from __future__ import annotations

import pytest
import torch

from qm_vllm import QuickMergeConfig
from tests.engines import engine, random_prompt
from tests.integration.generate import greedy, run
from tests.reference import Reference, attention_error, looked_up

BLOCK, TAIL, DEPTH = 32, 32, 4


@pytest.fixture(scope="module")
def llm(tiny_models):
    with engine(tiny_models("llama"), QuickMergeConfig(), skip_tokenizer_init=True) as llm:
        yield llm


@pytest.fixture(scope="module")
def seen(tiny_models):
    """Prompt, attention [8, 64, N] and values [4, N, d] of layers 2 and 3, order of keeping."""
    reference, ids = Reference(str(tiny_models("llama"))), random_prompt(500, seed=8)
    weights, values, cache = [], [], {}
    with torch.inference_mode():
        x, places = reference.core.embed_tokens(torch.tensor(ids)), torch.arange(len(ids))
        for layer in range(DEPTH):
            x, attention, _ = reference.layer(layer, x, places, cache)
            if layer >= DEPTH - 2:
                weights.append(attention[:, -64:])
                values.append(cache[layer][1].transpose(0, 1))
    score = looked_up(torch.cat(weights).double(), len(ids), TAIL)
    score[:4] = score[-TAIL:] = 2
    order = sorted(range(len(ids)), key=lambda i: (-float(score[i]), i))
    return ids, weights, values, order


def error(seen, k: int) -> float:
    _, weights, values, order = seen
    return max(
        attention_error(w, v, order[:k]) for w, v in zip(weights, values, strict=True)
    )


def test_every_report_has_the_error_of_what_was_kept(llm, seen):
    ((_, report),) = run(llm, [seen[0]], greedy(2, ratio=0.3, details=True))
    assert report["details"]["kept_indices"] == sorted(seen[3][: report["kept_tokens"]])
    assert report["attention_error"] == pytest.approx(error(seen, report["kept_tokens"]), rel=1e-3)
    ((_, blind),) = run(llm, [seen[0]], greedy(2, ratio=0.3, query_visible=False))
    assert "attention_error" not in blind


@pytest.mark.parametrize("limit", [0.2, 0.4])
def test_the_fewest_blocks_that_meet_the_bound(llm, seen, limit):
    ((_, report),) = run(llm, [seen[0]], greedy(2, max_error=limit))
    kept = report["kept_tokens"]
    assert report["status"] == "compressed", report
    assert (kept - 1) % BLOCK == 0 or kept == len(seen[0])
    assert report["attention_error"] <= limit
    assert error(seen, kept) <= limit * 1.001
    assert error(seen, kept - BLOCK) > limit * 0.999


def test_a_ratio_beside_it_is_an_upper_bound(llm, seen):
    ((_, report),) = run(llm, [seen[0]], greedy(2, max_error=0.01, ratio=0.3))
    assert report["kept_tokens"] <= 0.3 * len(seen[0])
    assert report["attention_error"] > 0.01

