"""Tasks of published documents, on small files of their form: cuts, halves, evidence, numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from qm_vllm_eval.haystacks import HaystackError
from qm_vllm_eval.match import match_score
from qm_vllm_eval.prompt import Prompt, prompt_length
from qm_vllm_eval.sample import SPLITS, Sample
from qm_vllm_eval.tasks import TASKS, build_sample, data, mentions
from qm_vllm_eval.tasks.base import TOLERANCE, Exhausted
from tests.unit.eval.data_files import ANSWER, HALF, lines, prose, write, write_documents
from tests.unit.eval.tokenizers import PlainTokenizer, embedded_tokenizer

SETS = ("longbench_", "leval_", "squality", "qmsum", "babilong_")
NAMES = [name for name in TASKS if name.startswith(SETS)]
EACH = pytest.mark.parametrize("task", NAMES)
WHOLE = {
    "longbench_gov_report", "longbench_qmsum", "longbench_passage_count", "leval_quality",
    "leval_sci_fi", "leval_gov_report_summ", "leval_patent_summ", "squality",
}
"""Tasks whose documents are never cut."""
LENGTH = 768
TOKENS = PlainTokenizer()


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterable[Path]:
    root = tmp_path_factory.mktemp("data")
    write_documents(root, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QM_VLLM_DATA", str(root))
        yield root


def built(task: str, split: str, index: int, length: int = LENGTH) -> Sample:
    return build_sample(
        task, length=length, split=split, index=index, tokenizer=TOKENS, haystacks=()
    )


def test_there_are_tasks_of_every_set() -> None:
    assert [sum(name.startswith(start) for name in NAMES) for start in SETS] == [13, 9, 1, 1, 10]


@EACH
@pytest.mark.parametrize("split", SPLITS)
def test_length_is_met_and_samples_are_the_same_again(task: str, split: str) -> None:
    for index in range(3):
        sample = built(task, split, index)
        least = LENGTH / 2 if task in WHOLE else LENGTH - TOLERANCE
        assert least <= prompt_length(sample, TOKENS) <= LENGTH
        assert sample == build_sample(
            task, length=LENGTH, split=split, index=index, tokenizer=PlainTokenizer(),
            haystacks=(),
        )
        assert sample.target.strip()
        assert sample.answers


@EACH
def test_halves_share_no_document(task: str) -> None:
    for parity, split in enumerate(SPLITS):
        said = " ".join(
            sample.context + sample.target for index in range(3)
            if (sample := built(task, split, index))
        )
        numbers = {int(number) for number in re.findall(r"x(\d+)", said)}
        assert {number % 2 for number in numbers} == {parity}
        assert len(numbers) == 3


@EACH
def test_the_right_answer_scores_one_and_another_less(task: str) -> None:
    sample = built(task, "report", 0)

    def score(prediction: str) -> float:
        return match_score(
            sample.metric, prediction, sample.answers, sample.target, sample.choices
        )

    assert score(sample.answers[0]) == 1.0
    assert score("Z 99") < 0.6


@EACH
def test_after_the_last_sample_there_is_none(task: str) -> None:
    with pytest.raises(Exhausted, match=rf"{task} has \d+ samples of {LENGTH} tokens"):
        built(task, "tune", 1000)


@EACH
def test_a_missing_file_is_told_with_what_to_do(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QM_VLLM_DATA", str(tmp_path))
    with pytest.raises(HaystackError, match=r"is missing in .*QM_VLLM_DATA"):
        built(task, "tune", 0)


@pytest.mark.parametrize("task", [
    "longbench_qasper", "longbench_multifieldqa_en", "longbench_hotpotqa", "leval_scientific_qa",
    "leval_natural_question", "leval_topic_retrieval_longchat", "longbench_triviaqa",
])
def test_what_is_cut_still_says_the_answer(task: str) -> None:
    for index, document in enumerate((1, 3, 5)):
        sample = built(task, "report", index)
        assert ANSWER.format(document) in sample.context
        assert ANSWER.format(document) in sample.target
        assert ANSWER.format(document) not in sample.question


def test_documents_come_before_their_second_questions() -> None:
    asked = [built("leval_quality", "tune", index) for index in range(6)]
    assert len({sample.context for sample in asked[:3]}) == 3
    assert [sample.context for sample in asked[3:]] == [sample.context for sample in asked[:3]]
    assert [sample.answers[0] for sample in asked] == ["(B) b"] * 3 + ["(C) c1"] * 3


def test_paragraphs_keep_their_numbers_and_order() -> None:
    sample = built("longbench_passage_retrieval_en", "report", 1)
    numbers = [int(number) for number in re.findall(r"Paragraph (\d+): ", sample.context)]
    assert 4 in numbers
    assert numbers == sorted(numbers)
    assert 2 <= len(numbers) < 9
    assert sample.target == " Paragraph 4"


def test_shots_are_whole_and_come_before_the_question() -> None:
    sample = built("longbench_trec", "tune", 0)
    assert sample.context.startswith("Question: ")
    assert sample.question == "Question: What is it ?\nType:"
    assert (sample.chat, sample.choices) == (False, ("kindx0", "other"))


def test_code_keeps_its_end() -> None:
    sample = built("longbench_lcc", "tune", 1)
    assert prose(2, 1200).replace(". ", "\n    ").endswith(sample.context)
    assert (sample.question, sample.target) == ("", "\n    returnx2 nothing")


def test_all_human_answers_count() -> None:
    sample = built("squality", "report", 0)
    assert len(sample.answers) == 4
    assert match_score("rouge_best", sample.answers[3], sample.answers, "") == 1.0
    assert sample.context == prose(1, HALF)


def test_a_window_holds_every_turn_of_the_evidence() -> None:
    sample = built("qmsum", "report", 0)
    told = [sample.context[start:end].strip() for start, end in sample.evidence]
    assert told == [f"A: {prose(1, 30, 10)}\nA: {prose(1, 30, 11)}", f"A: {prose(1, 30, 15)}"]


def test_facts_come_in_order_and_the_evidence_is_named() -> None:
    sample = built("babilong_qa1", "report", 0)
    facts = ["Maryx1 went to the officex1.", "Johnx1 went to the parkx1.",
             "Maryx1 went to the hallx1."]  # fmt: skip
    places = [sample.context.index(fact) for fact in facts]
    assert places == sorted(places)
    assert [sample.context[start:end] for start, end in sample.evidence] == facts[2:]
    assert "hallx1" in sample.choices


@pytest.mark.parametrize("visible", [True, False])
def test_evidence_is_counted_in_tokens(visible: bool) -> None:
    sample = replace(built("babilong_qa1", "report", 0), query_visible=visible)
    prompt = Prompt.of(sample, TOKENS)
    told = prompt.evidence
    assert len(told) == 5
    names = {number: text for text, number in TOKENS.ids.items()}
    assert "".join(names[prompt.ids[at]] for at in sorted(told)).endswith("went to the hallx1.")
    assert prompt.evidence_kept(range(len(prompt.ids))) == 1.0
    assert prompt.evidence_kept(sorted(told)[:2]) == pytest.approx(0.4)
    assert prompt.evidence_kept([]) == 0.0
    assert prompt.evidence_kept(None) != prompt.evidence_kept(None)  # NaN: not known


def test_the_mention_is_the_one_that_the_question_is_about() -> None:
    words = mentions.words_of(f"In 1990 it rained. {'So it went. ' * 40}The tower fell in 1990.")
    first, last = mentions.mention(words, "When did the tower fall?", ["1990"]) or (0, 0)
    assert (first, last) == (len(words) - 1, len(words))
    assert mentions.mention(words, "Did it fall?", ["Yes"]) is None
    assert mentions.mention(words, "When?", ["199"]) is None


def test_a_longer_answer_may_be_told_in_other_words() -> None:
    text = f"{'So it went. ' * 40}Three ferries crossed the river that winter. {'On it went. ' * 9}"
    words = mentions.words_of(text)
    place = mentions.retold(words, "In winter, three ferries were crossing the river.")
    assert place is None  # "were" and "crossing" are not there: four words of six
    place = mentions.retold(words, "That winter three ferries crossed a river.")
    assert place is not None
    assert "".join(words[slice(*place)]) == "Three ferries crossed the river that winter. "
    assert mentions.retold(words, "Three ferries.") is None  # too few words
    apart = mentions.words_of(f"Three ferries crossed. {'So it went. ' * 40}A river in winter.")
    assert mentions.retold(apart, "That winter three ferries crossed a river.") is None


def test_equal_documents_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QM_VLLM_DATA", str(tmp_path))
    rows = [
        {"input": prose(i // 2, HALF), "instructions": [f"What {i}?"], "outputs": ["(A) a"]}
        for i in range(4)
    ]
    write(tmp_path, "leval/Closed-ended-tasks/quality.jsonl", lines(rows))
    asked = [built("leval_quality", "tune", index).question for index in range(2)]
    assert ["What 0?" in asked[0], "What 1?" in asked[1]] == [True, True]
    with pytest.raises(Exhausted):
        built("leval_quality", "tune", 2)


REAL = data.data_folder()


@pytest.mark.parametrize("task", NAMES)
def test_published_files_give_samples(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QM_VLLM_DATA", str(REAL))
    try:
        data.check(TASKS[task].files)
    except HaystackError as error:
        pytest.skip(f"the published data are not here: {error}")
    tokenizer, length, found = embedded_tokenizer(), 4096, 0
    for split in SPLITS:
        try:
            sample = build_sample(
                task, length=length, split=split, index=0, tokenizer=tokenizer, haystacks=()
            )
        except Exhausted:
            continue
        found += 1
        assert length / 2 <= prompt_length(sample, tokenizer) <= length
    assert found or task in WHOLE

