"""Tasks of published data, on small files of their form: lengths, halves, missing files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from qm_vllm.errors import UserError
from qm_vllm_eval.haystacks import HaystackError
from qm_vllm_eval.prompt import prompt_length, prompt_parts
from qm_vllm_eval.sample import SPLITS, Sample
from qm_vllm_eval.study.session import _tasks
from qm_vllm_eval.tasks import DATA, RULER, TASKS, build_sample, data
from qm_vllm_eval.tasks.base import TOLERANCE
from qm_vllm_eval.tasks.many_shot import LABELS
from qm_vllm_eval.tasks.wikitext import articles
from tests.unit.eval.data_files import hotpot, lines, prose, squad, write, write_documents
from tests.unit.eval.tokenizers import PlainTokenizer

OF_DATA = [
    name for name, task in TASKS.items() if task.haystacks == (DATA,) and task.family != RULER
]
EACH = pytest.mark.parametrize("task", OF_DATA[:OF_DATA.index("longbench_qasper")])
"""The others have samples of documents as they are: see test_document_tasks.py."""
DOCUMENTS = 6
LENGTH = 768


def code(document: int) -> dict:
    text = prose(document, 1200).replace(". ", "\n    ")
    return {
        "prompt": f"Please complete the code given below. \n{text}\nNext line of code:\n",
        "gold": [f"    returnx{document} nothing"],
    }


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QM_VLLM_DATA", str(tmp_path))
    numbers = range(DOCUMENTS)
    write_documents(tmp_path, DOCUMENTS)
    write(tmp_path, data.PAPERS, lines([
        {"title": f"Paperx{i}", "abstract": prose(i, 120, 1),
         "sections": [{"title": "1 Introduction", "text": prose(i, 1500)}]}
        for i in numbers
    ]))
    write(tmp_path, data.CODE[0], lines([code(i) for i in range(3)]))
    write(tmp_path, data.CODE[1], lines([code(i) for i in range(3, DOCUMENTS)]))
    write(tmp_path, data.SQUAD, json.dumps({"data": [squad(i) for i in range(2 * DOCUMENTS)]}))
    write(tmp_path, data.HOTPOT, json.dumps([hotpot(i) for i in range(2 * DOCUMENTS)]))
    labels = [f"label_x{i:03d}" for i in range(2 * LABELS)]
    texts = {i: re.sub(r"x\d+", "", prose(i, 300)).split(". ") for i in range(2 * LABELS)}
    write(tmp_path, data.INTENTS, json.dumps({
        "train": [[text, label] for i, label in enumerate(labels) for text in texts[i]],
        "test": [["which one is it", label] for label in labels],
    }))
    write(tmp_path, data.ARTICLES, "".join(
        f" \n = Title {i} = \n \n {prose(i, 1500)} \n \n = = Part = = \n \n {prose(i, 50, 1)} \n"
        for i in numbers
    ))


def built(task: str, split: str, index: int) -> Sample:
    return build_sample(
        task, length=LENGTH, split=split, index=index, tokenizer=PlainTokenizer(), haystacks=()
    )


@EACH
@pytest.mark.parametrize("split", SPLITS)
def test_length_is_met_and_samples_are_the_same_again(task: str, split: str) -> None:
    for index in range(4):
        sample = built(task, split, index)
        assert LENGTH - TOLERANCE <= prompt_length(sample, PlainTokenizer()) <= LENGTH
        assert sample == built(task, split, index)
        assert (sample.haystack, sample.family) == (DATA, TASKS[task].family)
        assert prompt_parts(sample, PlainTokenizer())[2]


def numbers_in(samples: Iterable[Sample]) -> set[int]:
    said = " ".join(sample.context + sample.target for sample in samples)
    return {int(number) for number in re.findall(r"x(\d+)", said)}


@EACH
def test_halves_share_no_document(task: str) -> None:
    seen = {split: numbers_in(built(task, split, index) for index in range(4)) for split in SPLITS}
    assert all(number % 2 == 0 for number in seen["tune"])
    assert all(number % 2 == 1 for number in seen["report"])
    assert all(seen.values())


@pytest.mark.parametrize("task", ["paragraphs", "hotpot", "many_shot"])
def test_the_answer_is_in_the_context_alone(task: str) -> None:
    for index in range(4):
        sample = built(task, "report", index)
        assert sample.target == f" {sample.answers[0]}"
        assert sample.answers[0] in sample.context
        assert sample.answers[0] not in sample.question
        if task != "many_shot":
            assert sample.context.count(sample.answers[0]) == 1


def test_code_ends_where_the_next_line_begins() -> None:
    sample = built("next_code_line", "tune", 1)
    assert (sample.question, sample.chat) == ("", False)
    assert sample.target == "\n    returnx2 nothing"
    assert prose(2, 1200).replace(". ", "\n    ").endswith(sample.context)


def test_shots_are_whole_and_of_all_labels() -> None:
    sample = built("many_shot", "tune", 0)
    shots = sample.context.split("\n\n")
    assert all(re.fullmatch(r"text: .+\nlabel: label x\d+", shot) for shot in shots)
    assert len({shot.split("label: ")[1] for shot in shots}) == LABELS
    assert sample.question.endswith("\nlabel:")


def test_the_abstract_is_the_target_and_not_the_context() -> None:
    sample = built("abstract", "tune", 1)
    assert prose(2, 120, 1).startswith(sample.target.strip())
    assert sample.target.strip()[:40] not in sample.context
    assert len(prompt_parts(sample, PlainTokenizer())[2]) == 96


def test_articles_are_written_as_one_would() -> None:
    raw = " \n = A @-@ b = \n \n Up to 1 @,@ 000 ( or more ) , it says . \n \n = = Part = = \n \n c"
    assert articles(raw) == ["A-b\n\nUp to 1,000 (or more), it says.\n\nPart\n\nc"]


def test_questions_come_once_before_they_come_again() -> None:
    asked = [built("hotpot", "tune", index).answers[0] for index in range(DOCUMENTS)]
    assert len(set(asked)) == DOCUMENTS


@EACH
def test_a_missing_file_is_told_with_what_to_do(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QM_VLLM_DATA", str(tmp_path / "empty"))
    with pytest.raises(HaystackError, match=r"is missing in .*QM_VLLM_DATA"):
        built(task, "tune", 0)


def test_data_lies_in_the_cache_folder_unless_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QM_VLLM_DATA")
    monkeypatch.setenv("QM_VLLM_CACHE", str(tmp_path / "cache"))
    assert data.data_folder() == tmp_path / "cache" / "data"


def test_too_long_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller one"):
        build_sample(
            "abstract", length=9000, split="tune", index=0, tokenizer=PlainTokenizer(),
            haystacks=(),
        )


def test_data_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not set(OF_DATA) & set(_tasks(["all"]))
    assert _tasks(["data"]) == tuple(OF_DATA)
    assert _tasks(["summary", "data"])[0] == "abstract"
    monkeypatch.setenv("QM_VLLM_DATA", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="QM_VLLM_DATA"):
        _tasks(["abstract"])
