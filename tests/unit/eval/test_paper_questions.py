"""TVQA and QASPER as tasks: prompts, options, reasons and scores, with a fake tokenizer."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from qm_vllm_eval.datasets.qasper import QasperRow
from qm_vllm_eval.datasets.tvqa import Subtitle, TvqaRow
from qm_vllm_eval.paper.question_task import (
    LETTERS,
    QASPER,
    TVQA,
    QuestionTask,
    letter_ids,
    messages,
    shared_tail,
)
from qm_vllm_eval.ray.work import TOO_LONG, UNUSABLE, Answer
from tests.unit.eval.tokenizers import PlainTokenizer

SHOW = TvqaRow("tvqa-1", 1, "clip", question="Where is the key?", answer=1,
               answers=("drawer", "pot", "nail", "car", "nobody knows"),
               subtitles=tuple(Subtitle(i, i + 1, f"Line {i} is said now.") for i in range(60)))
PAPER = QasperRow("p/q", "p", "q", question="How often?", text="We weigh it twice. " * 60,
                  references=("twice", "Two times."), kinds=("extractive", "abstractive"))


def make_task(name, **given):
    return QuestionTask(**{"name": name, "source": "x", "ratios": (1.0, 0.5), "tokenizer": "x"}
                        | given)


def answer(text):
    return Answer([1], text, None, {}, 0.0, 1.0)


def test_prompts_have_the_text_then_the_question():
    (turn,) = messages(SHOW)
    assert turn["content"].startswith("Line 0 is said now.\n")
    assert "Where is the key?\nA. drawer\nB. pot\nC. nail\nD. car\nE. nobody knows\n" in (
        turn["content"])
    (turn,) = messages(PAPER)
    assert turn["content"].startswith("We weigh it twice.")
    assert "How often?" in turn["content"].split("---")[1]


def test_tvqa_may_only_say_five_letters():
    tokenizer = PlainTokenizer()
    plain, ours = make_task(TVQA).of_row(SHOW, tokenizer)
    assert plain.sampling == {
        "temperature": 0.0, "max_tokens": 1, "allowed_token_ids": letter_ids(tokenizer)}
    assert len(set(letter_ids(tokenizer))) == len(LETTERS) == 5
    assert plain.facts == {"answer": "B"}
    assert plain.options == {"enabled": False}
    assert ours.prompt == plain.prompt
    assert ours.options["ratio"] == 0.5


def test_letters_that_are_more_than_one_token_are_refused():
    with pytest.raises(ValueError, match="not one token"):
        letter_ids(SimpleNamespace(encode=lambda text, add_special_tokens: [1, 2]))


def test_the_question_is_protected_up_to_half_of_the_budget():
    tokenizer = PlainTokenizer()
    _, ours = make_task(QASPER).of_row(PAPER, tokenizer)
    ids = ours.prompt["prompt_token_ids"]
    asked = messages(PAPER)[0]["content"].split("---")[1]
    assert ours.options["protect_last"] == pytest.approx(len(asked.split()) + 1, abs=1)
    _, short = make_task(QASPER, ratios=(1.0, 0.2)).of_row(PAPER, tokenizer)
    assert short.options["protect_last"] == int(0.2 * len(ids)) // 2


def test_qasper_says_up_to_40_tokens():
    plain, _ = make_task(QASPER).of_row(PAPER, PlainTokenizer())
    assert plain.sampling == {"temperature": 0.0, "max_tokens": 40}
    assert plain.facts == {"references": ["twice", "Two times."]}


def test_long_and_unusable_rows_have_a_kind_and_a_reason():
    tokenizer = PlainTokenizer()
    cases = [
        (make_task(QASPER, most_tokens=20), PAPER, TOO_LONG, "at most 20 are allowed"),
        (make_task(TVQA), replace(SHOW, answer=-1), UNUSABLE, "not told"),
        (make_task(TVQA), replace(SHOW, reason="no subtitles"), UNUSABLE, "no subtitles"),
    ]
    for task, row, failure, reason in cases:
        units = list(task.of_row(row, tokenizer))
        assert [unit.failure for unit in units] == [failure] * 2
        assert all(reason in unit.reason and not unit.prompt for unit in units)


def test_scores_of_letters_and_answers():
    task = make_task(TVQA)
    assert task.score({"answer": "B"}, answer(" B")) == {"accuracy": 1.0}
    assert task.score({"answer": "B"}, answer("C")) == {"accuracy": 0.0}
    task = make_task(QASPER)
    facts = {"references": ["Unanswerable", "twice a day"]}
    assert task.score(facts, answer("unanswerable.")) == {"f1": 1.0, "exact_match": 1.0}
    # "twice" of "twice day" (articles do not count): precision 1, recall 1/2.
    assert task.score(facts, answer("\nTwice\n\nAnd more"))["f1"] == pytest.approx(2 / 3)
    assert task.score(facts, answer("")) == {"f1": 0.0, "exact_match": 0.0}


def test_the_folder_of_the_data_does_not_start_a_new_journal():
    one, other = make_task(TVQA, source="a/tv"), make_task(TVQA, source="b/tv", limit=3)
    assert one.settings() == other.settings()
    assert one.settings() != make_task(TVQA, source="a/tv", most_tokens=9).settings()


@pytest.mark.parametrize(("one", "other", "count"), [
    ([1, 2, 3], [9, 2, 3], 2), ([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2], [2], 1),
])
def test_shared_tail(one, other, count):
    assert shared_tail(one, other) == count
