"""ROUGE against rouge-score itself and against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from qm_vllm_eval.rouge import METRICS, as_lines, implementation, mean_rouge, rouge, sentences

WORDS = st.lists(st.sampled_from(["cat", "cats", "sat", "mat", "the", "running"]), min_size=1)


def test_by_hand() -> None:
    # "the cat sat" and "the mat sat": two of three words, no pair, "the ... sat" in order.
    scores = rouge("the cat sat", ["the mat sat"])
    assert scores == pytest.approx(
        {"rouge1": 2 / 3, "rouge2": 0.0, "rougeL": 2 / 3, "rougeLsum": 2 / 3}
    )
    # 3 of 4 predicted, 3 of 6 in the reference; pairs: "the cat" of 3 and of 5.
    scores = rouge("the cat on rugs", ["the cat sat on the mat"])
    assert scores["rouge1"] == pytest.approx(2 * 0.75 * 0.5 / 1.25)
    assert scores["rouge2"] == pytest.approx(2 * (1 / 3) * (1 / 5) / (1 / 3 + 1 / 5))


def test_the_stemmer_is_on_and_case_does_not_matter() -> None:
    assert rouge("Running Cats", ["runs cat"])["rouge1"] == 1.0


def test_lsum_takes_sentences_one_by_one() -> None:
    """Two sentences in the other order: half for one sequence, everything for sentences."""
    scores = rouge("Ada sings. Brun sleeps.", ["Brun sleeps. Ada sings."])
    assert scores["rougeL"] == pytest.approx(0.5)
    assert scores["rougeLsum"] == 1.0


def test_every_metric_takes_its_own_best_reference() -> None:
    prediction = "one two three four"
    pairs, words = "one two nine eight", "four three two one"
    one, other = rouge(prediction, [pairs]), rouge(prediction, [words])
    both = rouge(prediction, [pairs, words])
    assert both["rouge1"] == other["rouge1"] == 1.0
    assert both["rouge2"] == one["rouge2"] == pytest.approx(1 / 3)
    assert both == {metric: max(one[metric], other[metric]) for metric in METRICS}


@given(WORDS, WORDS)
def test_one_reference_is_rouge_score(first: list[str], second: list[str]) -> None:
    prediction, reference = " ".join(first), " ".join(second)
    theirs = RougeScorer(list(METRICS), use_stemmer=True).score(reference, prediction)
    assert rouge(prediction, [reference]) == {m: theirs[m].fmeasure for m in METRICS}


def test_sentence_breaks_reach_rouge_score_as_lines() -> None:
    prediction = 'Mr. Weston came. "Who is it?" she asked. Nobody knew.'
    reference = "Nobody knew Mr. Weston. She asked who it was."
    theirs = RougeScorer(["rougeLsum"], use_stemmer=True).score(
        "Nobody knew Mr. Weston.\nShe asked who it was.",
        'Mr. Weston came.\n"Who is it?" she asked.\nNobody knew.',
    )
    assert rouge(prediction, [reference])["rougeLsum"] == theirs["rougeLsum"].fmeasure


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. Darcy met Dr. J. Smith. They left.", ["Mr. Darcy met Dr. J. Smith.", "They left."]),
        ('He said "Go." She went.', ['He said "Go."', "She went."]),
        ("It cost 3.50 crowns e.g. Tuesday. 12 came.", ["It cost 3.50 crowns e.g. Tuesday.",
                                                        "12 came."]),
        ("first line\nsecond line. and more\n\n", ["first line", "second line. and more"]),
        ("", []),
        ("...", ["..."]),
        ("他来了。她走了！真的？（是。）好", ["他来了。", "她走了！", "真的？", "（是。）", "好"]),
    ],
)  # fmt: skip
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected
    assert as_lines(text) == "\n".join(expected)


@given(st.text(alphabet="aA.!? \n\"'M", max_size=60))
def test_splitting_loses_no_character_but_space(text: str) -> None:
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_empty_predictions_score_nothing_and_missing_references_are_refused() -> None:
    assert set(rouge("", ["a summary"]).values()) == {0.0}
    with pytest.raises(ValueError, match="at least one reference"):
        rouge("text", [])
    with pytest.raises(ValueError, match="holds no word"):
        rouge("text", ["fine", " ... "])


def test_means_with_intervals() -> None:
    rows = [rouge("a b", ["a b"]), rouge("c d", ["a b"])] * 20
    result = mean_rouge(rows)
    assert result["rouge1"]["mean"] == 0.5
    assert 0.2 < result["rouge1"]["low"] < 0.5 < result["rouge1"]["high"] < 0.8
    assert result == mean_rouge(rows)
    assert math.isnan(mean_rouge([])["rougeL"]["mean"])


def test_what_is_reported_as_implementation() -> None:
    held = implementation()
    assert (held["package"], held["stemmer"]) == ("rouge-score", True)
    assert held["words"] == "qm_vllm_eval.rouge_words.Words"
    assert str(held["version"])[0].isdigit()
