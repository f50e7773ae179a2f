"""Perplexity per source token against sums written out, and its independence of batches."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qm_vllm_eval.perplexity import IGNORED, Perplexity, TextLoss, total_nats

TEXTS = st.lists(
    st.tuples(st.floats(0, 500), st.integers(1, 200), st.integers(1, 900)), min_size=1, max_size=12
)


def of(rows) -> Perplexity:
    held = Perplexity()
    for row in rows:
        held.add(*row)
    return held


def test_a_uniform_guess_has_the_vocabulary_as_perplexity() -> None:
    logits = torch.zeros(2, 5, 7)
    held = Perplexity()
    held.add(total_nats(logits, torch.zeros(2, 5, dtype=torch.long)), [5, 5], [5, 5])
    assert held.perplexity == pytest.approx(7)
    assert held.bits_per_byte == pytest.approx(math.log2(7))
    assert held.source_tokens == 10


def test_fewer_predictions_do_not_make_it_smaller() -> None:
    """54 merged predictions of 2 nats against 128 of 1: the total counts, over 128 tokens each."""
    merged, plain = of([(54 * 2.0, 128, 600)]), of([(128 * 1.0, 128, 600)])
    assert plain.perplexity == pytest.approx(math.e)
    assert merged.perplexity == pytest.approx(math.exp(108 / 128))


def test_long_texts_weigh_more() -> None:
    assert of([(10.0, 10), (30.0, 90)]).perplexity == pytest.approx(math.exp(40 / 100))


@given(TEXTS, st.integers(0, 12))
def test_batches_and_workers_do_not_matter(rows, cut) -> None:
    whole, first, second = of(rows), Perplexity(), of(rows[cut:])
    nats, tokens, sizes = (list(column) for column in zip(*rows, strict=True))
    first.add(torch.tensor(nats[:cut], dtype=torch.float64), tokens[:cut], sizes[:cut])
    first.merge([second])
    want = math.exp(min(700, math.fsum(nats) / sum(tokens)))
    if want < 1e300:
        assert whole.perplexity == pytest.approx(want)
    assert first.perplexity == pytest.approx(whole.perplexity)
    assert whole.bits_per_byte == pytest.approx(math.fsum(nats) / math.log(2) / sum(sizes))


def test_total_nats_is_the_sum_of_log_probabilities() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 4, 9), torch.randint(9, (3, 4))
    targets[1, 2:] = IGNORED
    for row, total in enumerate(total_nats(logits, targets)):
        probabilities = (logits[row].double().exp() / logits[row].double().exp().sum(-1, True))
        want = -sum(
            math.log(probabilities[t, targets[row, t]]) for t in range(4)
            if targets[row, t] != IGNORED
        )
        assert float(total) == pytest.approx(want)


def test_the_interval_holds_the_figure_and_follows_the_seed() -> None:
    held = of([(float(i % 7) * 10, 10 + i) for i in range(40)])
    got = held.interval(seed=3)
    assert got["low"] < got["mean"] < got["high"]
    assert got == held.interval(seed=3)
    same = of([(20.0, 10)] * 5).interval()
    assert same["low"] == same["high"] == pytest.approx(math.exp(2))


def test_nothing_and_the_impossible() -> None:
    assert math.isnan(Perplexity().perplexity)
    assert math.isnan(Perplexity().interval()["low"])
    assert math.isnan(of([(1.0, 2)]).bits_per_byte)  # no bytes given
    assert math.isinf(of([(math.inf, 2)]).perplexity)
    for bad in ((math.nan, 1, None), (-1.0, 1, None), (1.0, 0, None), (1.0, 1, 0)):
        with pytest.raises(ValueError, match="must be"):
            TextLoss(*bad)
    with pytest.raises(ValueError, match="2 losses, 1 token counts"):
        Perplexity().add([1.0, 2.0], [3])
    with pytest.raises(ValueError, match=r"\[B, T, V\]"):
        total_nats(torch.zeros(1, 2, 3), torch.zeros(1, 3, dtype=torch.long))
