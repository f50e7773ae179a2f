"""The batched QuickMerge++ against qm_vllm.compress, one sequence at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qm_vllm.compress import (
    Evidence,
    absolute_saliency,
    compress,
    finish,
    gumbel_softmax_mask,
    score_tokens,
)
from qm_vllm.compress.grouping import contiguous
from qm_vllm.prior.batches import merging
from qm_vllm_eval.baselines import METHODS, Noise, Source, Spec, calibrate_alpha
from qm_vllm_eval.baselines.quickmerge import QuickMerge, nearest
from qm_vllm_eval.baselines.random_tokens import RandomTokens, hashed
from tests.unit.eval.baseline_sources import make_source, noise, rows


def scored(batch: int, count: int, width: int) -> tuple[Source, list[torch.Tensor]]:
    """A source whose scores come from two layers by qm_vllm.compress itself."""
    blank = make_source(batch, count, width)
    draw = torch.Generator().manual_seed(5)
    layers = [torch.randn(batch, count, width, generator=draw) for _ in range(2)]
    layers = [layer + 3 * torch.rand(batch, 1, width, generator=draw) for layer in layers]
    config, relative, absolute = merging(width), [], []
    for row in range(batch):
        evidence = Evidence.from_states(
            blank.states[row], [layer[row] for layer in layers],
            logit_scale=config.logit_scale, needs={"entropy"},
        )
        relative.append(score_tokens(evidence, config))
        absolute.append(absolute_saliency(evidence))
    source = replace(blank, saliency=torch.stack(relative), absolute=torch.stack(absolute))
    return source, layers


@pytest.mark.parametrize("count", [1, 3, 7, 40])
@pytest.mark.parametrize("budget", [True, False])
def test_equals_compress(count: int, budget: bool) -> None:
    source, layers = scored(6, count, 16)
    alpha = calibrate_alpha(source.absolute, 2.37)
    method = QuickMerge(16, alpha=alpha, norm_mask=0, entropy_budget=budget)
    tokens = method(source)
    budgeting = {"alpha": alpha, "min_kept": 4} if budget else {"ratio": 1 / 2.37}
    config = replace(merging(16), **budgeting)
    for row in range(6):
        expected = compress(source.states[row], config, layer_states=[x[row] for x in layers])
        length = int(tokens.lengths[row])
        assert length == expected.num_kept
        torch.testing.assert_close(tokens.states[row, :length], expected.states)


@pytest.mark.parametrize("norm_mask", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("seed", [None, 1])
def test_equals_a_loop_with_norm_masking(norm_mask: float, seed: int | None) -> None:
    source = make_source(6, 31)
    method = QuickMerge(12, alpha=0.6, norm_mask=norm_mask)
    drawn = None if seed is None else noise(seed)
    kept, tokens = method.anchors(source, drawn), method(source, drawn and noise(seed))
    gumbel = torch.zeros_like(source.saliency)
    if seed is not None:
        exponential = torch.empty_like(gumbel).exponential_(generator=noise(seed).generator)
        gumbel = -exponential.log()
    for row in range(6):
        norms = source.states[row].norm(dim=1)
        least = torch.quantile(norms, norm_mask)
        score = (source.saliency[row] + gumbel[row]).tolist()
        masked = (norms < least).tolist()
        order = [i for *_, i in sorted((i != 30, masked[i], -score[i], i) for i in range(31))]
        k = min(31, max(4, int((source.absolute[row] >= 0.6).sum())))
        expected = torch.tensor(sorted(order[:k]))
        assert torch.equal(kept[row].nonzero()[:, 0], expected)
        merged = finish(
            source.states[row], Evidence(31), source.saliency[row], expected, merging(12)
        )
        torch.testing.assert_close(tokens.states[row, :k], merged.states)


def test_masked_tokens_are_no_anchors_while_others_are_left() -> None:
    source = make_source(6, 40)
    kept = QuickMerge(12, norm_mask=0.25, entropy_budget=False).anchors(source)
    norms = source.states.norm(dim=-1)
    masked = norms < torch.quantile(norms, 0.25, dim=1, keepdim=True)
    masked[:, -1] = False
    assert masked.sum() > 0
    assert not (kept & masked).any()
    assert kept[:, -1].all()


def test_training_keeps_what_the_gumbel_mask_keeps() -> None:
    source = rows(make_source(1, 40), 0, 1)
    saliency = source.saliency.clone()
    saliency[:, -1] = 100.0  # else the protection of the last token would tell them apart
    source = replace(source, saliency=saliency)
    method = QuickMerge(12, norm_mask=0, entropy_budget=False)
    for seed in range(5):
        mask = gumbel_softmax_mask(
            saliency[0], 17, 0.5, noise(seed).generator, hard=True
        )
        assert torch.equal(method.anchors(source, noise(seed))[0], mask > 0.5)


def test_annealed_noise_vanishes_with_the_temperature() -> None:
    source = replace(make_source(6, 40), saliency=torch.rand(6, 40))
    for annealed in (False, True):
        method = QuickMerge(12, entropy_budget=False, annealed=annealed)
        cold = Noise(torch.Generator().manual_seed(1), 1e-6)
        same = torch.equal(method.anchors(source, cold), method.anchors(source))
        assert same == annealed


def test_nearest_is_the_contiguous_grouping() -> None:
    draw = torch.Generator().manual_seed(2)
    kept = torch.rand(64, 29, generator=draw) < torch.rand(64, 1, generator=draw)
    kept[:, 11] |= ~kept.any(1)
    groups = nearest(kept)
    for row in range(64):
        positions = kept[row].nonzero()[:, 0]
        assert torch.equal(groups[row], contiguous.group(torch.zeros(29, 1), positions))


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.37, 6.0])
def test_calibrated_alpha_keeps_the_share(factor: float) -> None:
    absolute = torch.rand(50, 64, generator=torch.Generator().manual_seed(4)) ** 2
    alpha = calibrate_alpha(absolute, factor)
    kept = (absolute >= alpha).sum(1).clamp(4, 64)
    assert float(kept.sum()) / absolute.numel() == pytest.approx(1 / factor, abs=1e-3)


def test_calibration_copes_with_equal_values_and_few_tokens() -> None:
    assert calibrate_alpha(torch.full((3, 8), 0.5), 2.0) == 0.5
    assert calibrate_alpha(torch.rand(3, 1), 2.37) >= 0
    assert calibrate_alpha(torch.rand(3, 4), 2.37) >= 0


def test_the_budget_needs_alpha() -> None:
    with pytest.raises(ValueError, match="alpha"):
        QuickMerge(12)


def test_random_tokens_are_the_budget_but_not_the_salient() -> None:
    source = make_source(8, 64)
    like = QuickMerge(12, alpha=0.6)
    method = RandomTokens(12, like)
    kept = method.anchors(source)
    assert torch.equal(kept.sum(1), like.budgets(source))
    assert kept[:, -1].all()
    assert not torch.equal(kept, like.anchors(source))
    # Neither scores nor states choose them; bytes beyond the length do not either.
    padded = torch.nn.functional.pad(source.raw, (0, 9))
    other = replace(source, raw=padded, saliency=torch.rand(8, 64), states=source.states + 1)
    assert torch.equal(method.anchors(other), kept)
    assert not torch.equal(method.anchors(source, noise(1)), method.anchors(source, noise(2)))


def test_hashes_are_spread_evenly() -> None:
    draw = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (200, 50), dtype=torch.uint8, generator=draw)
    raw[1] = raw[0]
    raw[1, 20] ^= 1  # one bit makes another sequence
    values = hashed(raw, torch.full((200,), 50), 64)
    assert values.min() >= 0
    assert values.max() < 1
    counts = torch.histc(values, 10, 0, 1)
    assert (counts / values.numel() - 0.1).abs().max() < 0.01
    assert (values[0] - values[1]).abs().mean() > 0.2
    assert torch.corrcoef(values).fill_diagonal_(0).abs().mean() < 0.15
    assert torch.corrcoef(values.T).fill_diagonal_(0).abs().mean() < 0.1


def test_ablations_change_one_thing_each() -> None:
    spec = Spec(12, 23, 61, alpha=0.6)
    fields = ("factor", "alpha", "norm_mask", "epsilon", "entropy_budget", "aligned", "annealed")
    full = METHODS["QuickMerge++"](spec)
    for name, changed in (
        ("- entropy budget", "entropy_budget"), ("- AR prior", "aligned"),
        ("- norm masking", "norm_mask"),
    ):
        other = METHODS[name](spec)
        assert [f for f in fields if getattr(full, f) != getattr(other, f)] == [changed]
