"""The codebook against loops in float64, and the runs that make the rate adapt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qm_vllm_eval.baselines.vq_vae import Codebook, VqVae, collapse
from tests.unit.eval.baseline_sources import make_source, noise


def test_nearest_code() -> None:
    torch.manual_seed(0)
    book, vectors = Codebook(20, 4), torch.randn(3, 9, 4)
    codes = book.nearest(vectors)
    expected = torch.cdist(vectors.double(), book.vectors.double()).argmin(-1)
    assert torch.equal(codes, expected)


def test_codebook_follows_a_float64_loop() -> None:
    torch.manual_seed(0)
    book = Codebook(6, 3, restart_below=0.0)
    draw = torch.Generator().manual_seed(1)
    data = torch.randn(40, 3)
    book.begin(data, draw)
    counts = [1.0] * 6
    sums = book.vectors.double().clone()
    for _ in range(30):
        batch = torch.randn(2, 20, 3)
        codes = book.nearest(batch)
        book.update(batch, codes, draw)
        for code in range(6):
            chosen = batch.double()[codes == code]
            counts[code] = 0.99 * counts[code] + 0.01 * len(chosen)
            sums[code] = 0.99 * sums[code] + 0.01 * chosen.sum(0)
        total = sum(counts)
        expected = torch.stack([
            sums[code] / ((counts[code] + 1e-5) / (total + 6 * 1e-5) * total)
            for code in range(6)
        ])
        torch.testing.assert_close(book.vectors.double(), expected, rtol=1e-4, atol=1e-5)


def test_starts_on_the_first_batch_and_only_then() -> None:
    book, draw = Codebook(8, 3), torch.Generator().manual_seed(1)
    data = torch.randn(50, 3)
    book.begin(data, draw)
    apart = torch.cdist(book.vectors, data).amin(1)
    assert apart.max() < 1e-3
    before = book.vectors.clone()
    book.begin(torch.randn(50, 3), draw)
    assert torch.equal(book.vectors, before)


def test_dead_codes_restart_from_the_batch() -> None:
    book, draw = Codebook(8, 3), torch.Generator().manual_seed(1)
    book.begin(torch.randn(50, 3), draw)
    book.counts.fill_(10.0)
    book.counts[2] = 0.1
    book.sums.copy_(book.vectors * book.counts[:, None])
    before = book.vectors.clone()
    batch = torch.randn(40, 3) + 100
    codes = torch.arange(40) % 2  # none of them chooses code 2
    book.update(batch, codes, draw)
    assert torch.cdist(book.vectors[2:3], batch).min() < 1e-3
    assert book.counts[2] > 5
    torch.testing.assert_close(book.sums[2] / book.counts[2], book.vectors[2])
    torch.testing.assert_close(book.vectors[3:], before[3:], rtol=1e-3, atol=1e-3)


def test_perplexity_counts_codes_in_use() -> None:
    book = Codebook(8, 3)
    assert float(book.perplexity()) == pytest.approx(8)
    book.counts[2:] = 0
    assert float(book.perplexity()) == pytest.approx(2)


def runs(row: list[int]) -> list[int]:
    return [i for i, code in enumerate(row) if i == 0 or row[i - 1] != code]


@pytest.mark.parametrize("codes", [[[1]], [[3, 3, 3, 3], [3, 1, 3, 3], [0, 1, 2, 3], [2, 2, 0, 0]]])
def test_runs_collapse_to_their_first(codes: list[list[int]]) -> None:
    index = torch.tensor(codes)
    vectors = torch.randn(*index.shape, 5)
    tokens, lengths = collapse(vectors, index)
    assert lengths.tolist() == [len(runs(row)) for row in codes]
    for row, one in enumerate(codes):
        places = runs(one)
        assert torch.equal(tokens[row, : len(places)], vectors[row, places])
        assert (tokens[row, len(places) :] == 0).all()


def trained(method: VqVae, steps: int) -> list[float]:
    """Losses while it learns sequences in which states come in runs."""
    optimiser = torch.optim.AdamW(method.parameters(), lr=2e-3)
    draw = torch.Generator().manual_seed(0)
    kinds = torch.randn(10, 12, generator=draw)
    losses = []
    for step in range(steps):
        picks = torch.randint(0, 10, (8, 6), generator=draw).repeat_interleave(4, 1)
        source = make_source(8, 24)
        source.states.copy_(kinds[picks] + 0.05 * torch.randn(8, 24, 12, generator=draw))
        loss = method(source, noise(step)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def test_learns_to_reconstruct_and_uses_its_codes() -> None:
    torch.manual_seed(0)
    method = VqVae(12, num_codes=32, code_width=8, hidden=32).train()
    losses = trained(method, 150)
    assert losses[-1] < 0.5 * losses[0]
    assert float(method.perplexity()) > 8


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 5, 24])
def test_strides(stride: int, count: int) -> None:
    method = VqVae(12, stride=stride, hidden=16).train()
    source = make_source(4, count)
    target, encoded = method.encode(source.states)
    assert encoded.shape == (4, -(-count // stride), 64)
    assert method.decode(encoded, count).shape == target.shape
    assert method(source, noise()).lengths.max() <= encoded.shape[1]


def test_channels_are_standardised() -> None:
    method = VqVae(12).train()
    parts: list[Tensor] = []
    for seed in range(4):
        source = make_source(3 + seed, 20)
        source.states.mul_(5).add_(7)
        parts.append(source.states[:3])
        source = type(source)(*(getattr(source, f)[:3] for f in source.__dataclass_fields__))
        method(source, noise())
    seen = torch.cat(parts).flatten(0, 1)
    torch.testing.assert_close(method.mean, seen.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(method.variance, seen.var(0, correction=0), rtol=1e-4, atol=1e-4)


def test_no_loss_without_noise_and_no_learning_outside_training() -> None:
    method = VqVae(12).eval()
    source = make_source()
    assert float(method(source).loss) == 0
    before = method.codebook.vectors.clone()
    assert float(method(source, noise()).loss.detach()) > 0
    assert torch.equal(before, method.codebook.vectors)
    method.train()(source, noise())
    assert not torch.equal(before, method.codebook.vectors)


def test_tokens_are_codes_and_pass_the_gradient_straight_through() -> None:
    method, source = VqVae(12, hidden=16).eval(), make_source()
    tokens = method(source)
    row = tokens.states[0, : tokens.lengths[0]]
    assert torch.cdist(row, method.codebook.vectors).amin(1).max() < 1e-2
    tokens.states.sum().backward()
    assert method.encoder[0].weight.grad.abs().sum() > 0
    assert method.decoder[0].weight.grad is None
