"""The bound on memory against what is measured, and steps that must not copy their input."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from qm_vllm import config as configuration
from qm_vllm.compress import (
    Evidence,
    QueryAttention,
    choose,
    fidelity,
    finish,
    group_tokens,
    merge_states,
    needs,
    protected_positions,
    row_norms,
    workspace_bytes,
)
from qm_vllm.config import QuickMergeConfig
from tests.unit import helpers
from tests.unit.peak_memory import peak_bytes

WIDTH = 256


def run(x, config, attention, leverage):
    """What the engine does with the states of a prompt."""
    evidence = Evidence(x.shape[0], attention=attention, leverage=leverage)
    evidence.observe_layer(x, config.logit_scale, needs(config))
    evidence.norms = row_norms(x)
    protected = protected_positions(config, x.shape[0])
    choice = choose(evidence, config, protected=protected)
    return evidence, choice, finish(x, evidence, choice.scores, choice.kept, config)


def measured(x, config):
    seen = helpers.seen(x.shape[0])
    attention = [QueryAttention.of(layer) for layer in seen["attention"]]
    most, _ = peak_bytes(lambda: run(x, config, attention, seen["leverage"]))
    return most, workspace_bytes(x.shape[0], x.shape[1], x.element_size(), config=config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grouping", configuration.GROUPINGS)
@pytest.mark.parametrize("saliency", helpers.METHODS)
def test_the_bound_holds_and_is_near_what_is_measured(saliency, grouping, dtype):
    config = QuickMergeConfig(saliency=saliency, grouping=grouping)
    most, bound = measured(helpers.states(512, WIDTH, dtype=dtype), config)
    assert most <= bound
    most, bound = measured(helpers.states(4096, WIDTH, dtype=dtype), config)
    assert most <= bound <= 3 * most


@pytest.mark.parametrize(
    "fields",
    [
        {"merge": "select"}, {"merge": "mean"}, {"ratio": 0.99}, {"ratio": 0.02},
        {"max_kept": 100}, {"logit_scale": 30.0, "saliency": "ned"}, {"alpha": 0.3},
        {"score_layers": (0, 1), "saliency": "entropy"},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(60, 8), (1500, 96), (1200, 700)], ids=str)
def test_the_bound_holds_for_every_option_and_shape(shape, fields):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        config = QuickMergeConfig.from_dict({"protect_last": 8, **fields})
        most, bound = measured(helpers.states(*shape, dtype=dtype), config)
        assert most <= bound, dtype


def test_the_bound_of_a_wide_prompt_is_little_more_than_its_copies():
    """Of 32k tokens of width 8192: one copy in float32, or the merged states."""
    size = 32768 * 8192
    entropy = QuickMergeConfig(saliency="entropy")
    assert workspace_bytes(32768, 8192, 2, config=entropy) < 1.25 * 4 * size
    capped = QuickMergeConfig(saliency="norm", max_kept=1024)
    assert workspace_bytes(32768, 8192, 2, config=capped) < 0.25 * 4 * size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_and_measuring_hold_a_bounded_workspace(dtype, monkeypatch):
    """Twice the tokens, or nearly all of them kept: no more beside the merged states."""
    monkeypatch.setattr("qm_vllm.compress.merge.AT_ONCE", 1 << 18)
    monkeypatch.setattr("qm_vllm.compress.fidelity.AT_ONCE", 1 << 18)
    for count, ratio in ((2000, 0.3), (4000, 0.3), (4000, 0.999), (4000, 0.02)):
        x, k = helpers.states(count, WIDTH, dtype=dtype), int(ratio * count)
        kept = torch.linspace(0, count - 1, k).long()
        groups = group_tokens(x, kept, QuickMergeConfig())
        scores, norms = torch.rand(count), row_norms(x)
        merge = partial(merge_states, x, kept, groups, scores, QuickMergeConfig())
        most, result = peak_bytes(merge)
        assert most - result < 3 * (1 << 18) + 128 * count
        most, _ = peak_bytes(partial(fidelity.measures, x, merge(), groups, norms, kept))
        assert most < 3 * (1 << 18) + 64 * count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_and_attention_are_not_widened_whole(dtype):
    x = helpers.states(8192, WIDTH, dtype=dtype)
    assert peak_bytes(lambda: row_norms(x))[0] <= 1024 * WIDTH * 4 + 3 * 8192 * 4
    assert torch.equal(row_norms(x), torch.linalg.vector_norm(x.float(), dim=1))
    weights = torch.rand(16, 64, 2000).to(dtype)
    most, _ = peak_bytes(lambda: QueryAttention.of(weights))
    assert most < weights.float().nbytes / 3
