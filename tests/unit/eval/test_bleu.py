"""BLEU against n-grams counted by hand, and its statistics over texts."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_vllm_eval.bleu import bleu, implementation

TEXTS = st.lists(st.sampled_from(list("abcde")), min_size=4, max_size=9).map(" ".join)
ITEMS = st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=5)


def counted(items) -> float:
    """Papineni et al. with clipped counts; None-smoothed, the closest (shorter) reference."""
    hits, totals, said, wanted = [0] * 4, [0] * 4, 0, 0
    for text, references in items:
        words = text.split()
        said += len(words)
        sizes = [len(row.split()) for row in references]
        wanted += min(sizes, key=lambda size: (abs(size - len(words)), size))
        for n in range(1, 5):
            def grams(row, n=n):
                return Counter(zip(*(row.split()[i:] for i in range(n)), strict=False))

            most = Counter()
            for row in references:
                most |= grams(row)
            hits[n - 1] += sum((grams(text) & most).values())
            totals[n - 1] += sum(grams(text).values())
    if not all(hits):
        return math.nan
    mean = sum(math.log(hit / total) for hit, total in zip(hits, totals, strict=True)) / 4
    return math.exp(mean + min(0.0, 1 - wanted / said))


def test_the_same_text_is_1_and_nothing_in_common_0() -> None:
    text = "the cat sat on the mat"
    got = bleu([text], [[text]])
    assert got["mean"] == got["low"] == got["high"] == pytest.approx(1)
    assert got["precisions"] == pytest.approx([1, 1, 1, 1])
    assert bleu(["one two three four"], [["a b c d"]])["mean"] == 0.0


def test_by_hand() -> None:
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, no quadruple: smoothed to half of one in 3.
    got = bleu(["the cat sat on the mat"], [["the cat sits on the mat"]])
    assert got["precisions"] == pytest.approx([5 / 6, 3 / 5, 1 / 4, 1 / 6])
    assert got["mean"] == pytest.approx((5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25)


def test_short_predictions_are_penalised() -> None:
    got = bleu(["a b c d e"], [["a b c d e f g h i j"]])
    assert got["brevity_penalty"] == pytest.approx(math.exp(-1))
    assert got["mean"] == pytest.approx(math.exp(-1))
    assert got["tokens"] == [5, 10]


@settings(deadline=None, max_examples=60)
@given(ITEMS)
def test_equals_the_counts(items) -> None:
    """Also where texts have different numbers of references."""
    predictions, references = zip(*items, strict=True)
    got = bleu(predictions, references, resamples=5)
    want = counted(items)
    if not math.isnan(want):
        assert got["mean"] == pytest.approx(want)
    assert 0 <= got["low"] <= got["high"] <= 1 + 1e-9


def test_an_interval_holds_the_corpus_and_follows_the_seed() -> None:
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "again"]
    predictions = [" ".join(words[: 5 + i % 6]) for i in range(30)]
    references = [[" ".join(words)], ["nothing of the sort at all"]] * 15
    got = bleu(predictions, references, seed=1)
    assert got["low"] < got["mean"] < got["high"]
    assert got == bleu(predictions, references, seed=1)


def test_case_tokenizer_and_signature() -> None:
    pair = ["The Cat sat, on mats"], [["the cat sat, on mats"]]
    assert bleu(*pair)["mean"] < 1
    lower = bleu(*pair, lowercase=True)
    assert lower["mean"] == pytest.approx(1)
    assert "case:lc" in lower["signature"]
    assert "tok:13a" in lower["signature"]
    assert bleu(*pair, tokenize="none", lowercase=True)["tokens"] == [5, 5]  # "sat," is one word
    assert bleu(*pair)["tokens"] == [6, 6]
    assert implementation("x")["signature"] == "x"
    assert implementation()["package"] == "sacrebleu"


def test_refusals() -> None:
    with pytest.raises(ValueError, match="one list"):
        bleu(["a", "b"], [["a"]])
    for row in ([], ["a", " "], "a b c"):
        with pytest.raises(ValueError, match="text 0"):
            bleu(["a"], [row])
    with pytest.raises(ValueError, match="no tokenizer 'ptb'"):
        bleu(["a"], [["a"]], tokenize="ptb")
