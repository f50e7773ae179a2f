"""QASPER's loader on an invented paper in the published form, and as records of the hub."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qm_vllm_eval.datasets import DataSetError
from qm_vllm_eval.datasets.qasper import COLUMNS, QASPER, open_qasper, reference
from tests.unit.eval.record_files import write_records


def answer(**told: Any) -> dict[str, Any]:
    blank = {"unanswerable": False, "extractive_spans": [], "yes_no": None,
             "free_form_answer": "", "evidence": [], "highlighted_evidence": []}  # fmt: skip
    return {"answer": {**blank, **told}, "annotation_id": "a1", "worker_id": "w1"}


PAPER: dict[str, Any] = {
    "title": "On Pebbles",
    "abstract": "We weigh pebbles.",
    "full_text": [
        {"section_name": "Method ::: Scale", "paragraphs": ["We weigh twice.", "", "It errs."]},
        {"section_name": None, "paragraphs": ["They are heavy."]},
    ],
    "qas": [
        {"question": "How often?", "question_id": "q1", "nlp_background": "two",
         "answers": [answer(extractive_spans=["twice", "two times"], evidence=["We weigh twice."]),
                     answer(free_form_answer="Two times.", evidence=["FLOAT SELECTED: Table 1"])]},
        {"question": "Is it exact?", "question_id": "q2",
         "answers": [answer(yes_no=False), answer(yes_no=True), answer(unanswerable=True)]},
    ],
}  # fmt: skip


def write(folder: Path, split: str = "test", held: Any = None) -> Path:
    file = folder / f"qasper-{split}-v0.3.json"
    file.write_text(json.dumps({"2101.00001": PAPER} if held is None else held), encoding="utf-8")
    return file


def hub_record() -> dict[str, Any]:
    """As the hub keeps it: an object of lists for each list of objects."""

    def lists(held: list[dict[str, Any]], keys: tuple[str, ...]) -> dict[str, list[Any]]:
        return {key: [entry[key] for entry in held] for key in keys}

    qas = [{**entry, "answers": lists(entry["answers"], ("answer", "annotation_id"))}
           for entry in PAPER["qas"]]  # fmt: skip
    return {
        "id": "2101.00001",
        "title": PAPER["title"],
        "abstract": PAPER["abstract"],
        "full_text": lists(PAPER["full_text"], ("section_name", "paragraphs")),
        "qas": lists(qas, ("question", "question_id", "answers")),
    }


def test_questions_with_the_papers_text_and_all_answers(tmp_path: Path) -> None:
    data = open_qasper(write(tmp_path))
    first, second = data
    assert first.row_id == "2101.00001/q1"
    assert first.references == ("twice, two times", "Two times.")
    assert first.kinds == ("extractive", "abstractive")
    assert first.evidence == (("We weigh twice.",), ("FLOAT SELECTED: Table 1",))
    assert second.references == ("No", "Yes", "Unanswerable")
    assert second.kinds == ("boolean", "boolean", "none")
    assert first.text == (
        "On Pebbles\n\nWe weigh pebbles.\n\nMethod ::: Scale\n\nWe weigh twice.\n\nIt errs.\n\n"
        "They are heavy."
    )
    assert second.text == first.text
    assert (first.usable, first.title, second.question) == (True, "On Pebbles", "Is it exact?")
    assert list(data) == [first, second]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"unanswerable": True, "free_form_answer": "x"}, ("Unanswerable", "none")),
        ({"extractive_spans": ["a", "b"], "free_form_answer": "x"}, ("a, b", "extractive")),
        ({"free_form_answer": "x", "yes_no": True}, ("x", "abstractive")),
        ({"yes_no": True}, ("Yes", "boolean")),
        ({"yes_no": False}, ("No", "boolean")),
        ({}, ("", "")),
    ],
)
def test_the_evaluators_order_of_answers(told: dict[str, Any], expected: tuple[str, str]) -> None:
    assert reference(answer(**told)["answer"]) == expected


def test_splits_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "train", {})
    write(tmp_path, "dev")
    assert list(open_qasper(tmp_path, "train")) == []
    assert len(list(open_qasper(tmp_path, "validation"))) == 2
    with pytest.raises(DataSetError, match=r"qasper-test-v0\.3\.json; get QASPER.*CC-BY-4\.0"):
        open_qasper(tmp_path, "test")
    (tmp_path / "qasper-dev-v0.2.json").write_text("{}")
    with pytest.raises(DataSetError, match="more than one version"):
        open_qasper(tmp_path, "validation")


def test_records_of_the_hub_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = list(open_qasper(write(tmp_path)))
    for kind in ("parquet", "jsonl"):
        file = write_records(tmp_path / f"test-00000-of-00001.{kind}", [hub_record()])
        assert list(open_qasper(file)) == rows
    asked = []

    def load_dataset(*given: Any, **more: Any) -> Any:
        asked.append((given, more))
        return [hub_record()]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert QASPER.hub == "allenai/qasper"
    assert list(open_qasper(QASPER.hub)) == rows
    assert asked == [((QASPER.hub, "qasper"), {"split": "test", "streaming": True})]
    assert set(hub_record()) == set(COLUMNS)


def test_what_is_wrong_with_a_question_or_paper_is_a_reason(tmp_path: Path) -> None:
    held: dict[str, Any] = {"1": copy.deepcopy(PAPER), "2": {"title": "x"}, "3": PAPER, "4": []}
    held["1"]["qas"] += [
        {"question": "Why?", "question_id": "q3", "answers": [answer(), {"answer": None}]},
        {"question": " ", "question_id": "q4", "answers": []},
        "no object",
        held["1"]["qas"][0],
    ]
    held["3"] = {**PAPER, "full_text": [{"section_name": "A"}]}
    data = open_qasper(write(tmp_path, held=held))
    rows = list(data)
    name = "qasper-test-v0.3.json"
    assert [row.usable for row in rows] == [True, True] + [False] * 7
    assert rows[2].reason == f"{name} 1 qas[2] has no answer"
    assert data.skipped == {"empty answer": 2}
    assert rows[3].reason == f"{name} 1 qas[3] has no 'question' or 'question_id'"
    assert rows[5].reason == f"1/q1 is in {name} more than once"
    for row, key in zip(rows[6:], "234", strict=True):
        assert row.reason == f"{name} {key} is no paper with an id, 'full_text' and 'qas'"
    assert len({row.row_id for row in rows}) == len(rows)


def test_files_of_another_form(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"get QASPER from allenai\.org"):
        open_qasper(tmp_path / "nothing.json")
    with pytest.raises(DataSetError, match="holds a list; it should be an object of papers"):
        open_qasper(write(tmp_path, held=[1]))
    with pytest.raises(DataSetError, match="has no column 'full_text'"):
        list(
            open_qasper(
                write_records(tmp_path / "a.parquet", [{"id": "1", "title": "x", "abstract": "y"}])
            )
        )
    (row,) = open_qasper(write_records(tmp_path / "b.jsonl", [{"id": "1"}]))
    assert row.reason == "b.jsonl row 1 has no column 'title'"
