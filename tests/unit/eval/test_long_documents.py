"""Loaders of LongBench, L-Eval, SQuALITY, QMSum and bAbI: both forms, the hub, bad records."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qm_vllm_eval.datasets import DataSetError
from qm_vllm_eval.datasets.babi import open_babi
from qm_vllm_eval.datasets.fixtures import write_fixture
from qm_vllm_eval.datasets.leval import LEVAL, open_leval
from qm_vllm_eval.datasets.longbench import LONGBENCH, PROMPTS, open_longbench
from qm_vllm_eval.datasets.qmsum import open_qmsum
from qm_vllm_eval.datasets.squality import open_squality
from tests.unit.eval.data_files import code, lines, passages, prompts, write

PROMPT = {
    "prompt": "Read.\n\nThe text.\n\nNow, answer it.\n\nQuestion: Why?\nAnswer:", "gold": ["So."],
}  # fmt: skip
COLUMNS = {"context": "The text.", "input": "Why?", "answers": ["So."], "all_classes": None}


def reasons(rows: Any) -> list[str]:
    return [row.reason for row in rows]


def test_a_prompt_and_its_parts_are_the_same_row(tmp_path: Path) -> None:
    write(tmp_path, "multifieldqa_en.jsonl", lines([PROMPT, COLUMNS]))
    first, second = open_longbench(tmp_path)
    assert (first.context, first.input, first.answers) == ("The text.", "Why?", ("So.",))
    assert (second.context, second.input, second.answers) == ("The text.", "Why?", ("So.",))
    assert [first.row_id, second.row_id] == ["multifieldqa_en-0", "multifieldqa_en-1"]


def test_every_prompt_of_the_selection_is_taken_apart(tmp_path: Path) -> None:
    held = prompts(3)
    assert set(held) == set(PROMPTS)
    for task, (prompt, gold) in held.items():
        write(tmp_path, f"{task}.jsonl", lines([{"prompt": prompt, "gold": gold}]))
    rows = {row.task: row for row in open_longbench(tmp_path)}
    assert reasons(rows.values()) == [""] * len(PROMPTS)
    asked = {task: row.input for task, row in rows.items()}
    assert asked["hotpotqa"] == asked["qasper"] == asked["multifieldqa_en"] == "What was found?"
    assert asked["qmsum"] == "Why?"
    assert asked["trec"] == "Question: What is it ?\nType:"
    assert asked["triviaqa"].startswith("Passage:\n")
    assert asked["triviaqa"].endswith("\nQuestion:\nWhat was found?\nAnswer:")
    assert asked["passage_retrieval_en"] == "A thing was found."
    assert asked["gov_report"] == asked["passage_count"] == asked["lcc"] == ""
    assert rows["lcc"].context == code(3) + "\n"
    assert rows["passage_retrieval_en"].context == passages(3, "Paragraph", " ", 120, 9)
    assert rows["trec"].classes == ("kindx3", "other")
    assert [row.task for row in open_longbench(tmp_path / "lcc.jsonl")] == ["lcc"]


@pytest.mark.parametrize(("opener", "of", "task", "record"), [
    (open_longbench, LONGBENCH, "multifieldqa_en", COLUMNS),
    (open_leval, LEVAL, "quality", {"input": "x", "instructions": ["y"], "outputs": ["z"]}),
])  # fmt: skip
def test_the_hub_is_asked_for_one_task(
    opener: Callable[..., Any], of: Any, task: str, record: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def load_dataset(*given: Any, **more: Any) -> Any:
        asked.append((given, more))
        return [record]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    rows = list(opener(of.hub, task=task))
    assert reasons(rows) == [""]
    assert rows[0].task == task
    assert asked == [((of.hub, task), {"split": "test", "streaming": True})]
    with pytest.raises(DataSetError, match="name a task of"):
        opener(of.hub)
    with pytest.raises(DataSetError, match="no task 'x'"):
        opener(of.hub, task="x")


def test_what_cannot_be_used_has_a_reason(tmp_path: Path) -> None:
    write(tmp_path, "long/qasper.jsonl", lines([
        {"prompt": "Another form.", "gold": ["a"]}, COLUMNS | {"answers": []},
        COLUMNS | {"context": " "}, {"prompt": 3},
    ]) + "{cut\n")
    assert all("is no sample of qasper" in text for text in reasons(
        open_longbench(tmp_path / "long"))[:4])
    assert "is no JSON" in reasons(open_longbench(tmp_path / "long"))[4]
    write(tmp_path, "l/quality.jsonl", lines([
        {"input": "x", "instructions": ["a", "b"], "outputs": ["c"]},
        {"input": "x", "instructions": ["a", ""], "outputs": ["c", "d"]},
    ]))
    first, second, third = reasons(open_leval(tmp_path / "l"))
    assert "as many answers as questions" in first
    assert (second, "empty question" in third) == ("", True)
    story = {"metadata": {"passage_id": "7"}, "document": "x", "questions": [
        {"question_text": "Why?", "responses": [{"response_text": " "}]}, "no question",
    ]}  # fmt: skip
    write(tmp_path, "s/test.jsonl", lines([story, story | {"document": None}]))
    texts = reasons(open_squality(tmp_path / "s"))
    assert ["no answer" in text for text in texts[:2]] == [True, True]
    assert "is no story" in texts[2]
    meeting = {
        "meeting_transcripts": [{"speaker": "A", "content": "x"}], "general_query_list": [],
        "specific_query_list": [
            {"query": "a", "answer": "b", "relevant_text_span": [["0", "1"]]},
            {"query": "a", "answer": "b", "relevant_text_span": [["0"]]},
            {"query": "a", "answer": "", "relevant_text_span": [["0", "0"]]},
        ],
    }  # fmt: skip
    write(tmp_path, "q/test.jsonl", lines([meeting, meeting | {"meeting_transcripts": []}]))
    texts = reasons(open_qmsum(tmp_path / "q"))
    assert ["turns that are not there" in text for text in texts[:2]] == [True, True]
    assert ["no answer" in texts[2], "is no meeting" in texts[3]] == [True, True]
    write(tmp_path, "b/qa1_x_test.txt", "1 A went.\n2 Where is A? \tpark\t9\n3 Where? \t\t1\n")
    assert ["names no fact" in text for text in reasons(open_babi(tmp_path / "b"))] == [True, True]


def test_rows_of_the_fixtures(tmp_path: Path) -> None:
    for name in ("squality", "qmsum", "babi", "leval"):
        write_fixture(name, tmp_path / name)
    plot, wheels = open_squality(tmp_path / "squality", "validation")
    assert (plot.story_id, plot.question) == ("dev-1", "What is the plot?")
    assert wheels.references == ("A mill is told of.", "One wheel turns.")
    special, general = open_qmsum(tmp_path / "qmsum", "validation")
    assert special.turns[1] == "Bo: No, the wheel still turns."
    assert (special.evidence, general.evidence) == (((1, 1),), ())
    first, second, third = open_babi(tmp_path / "babi", "train", task=1)
    assert first.facts == ("Ada went to the mill.", "Bo took the key.")
    assert (first.answer, first.evidence, first.story) == ("mill", (0,), 0)
    assert (second.facts[second.evidence[0]], third.story) == ("Ada went to the bridge.", 1)
    asked = list(open_leval(tmp_path / "leval", task="scientific_qa"))
    assert [(row.question, row.answer, row.number) for row in asked] == [
        ("How many wheels are there?", "three", 0), ("Which one turns?", "the smallest", 0),
    ]


@pytest.mark.parametrize(
    "opener", [open_longbench, open_leval, open_squality, open_qmsum, open_babi]
)
def test_an_empty_folder_says_where_the_set_is(opener: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"get .+ from .+ \(licence"):
        opener(tmp_path)
    with pytest.raises(DataSetError, match="has no split 'x'"):
        opener(tmp_path, "x")
