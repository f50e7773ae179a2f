"""The loader of Something-Something v2 on files with the published fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qm_vllm_eval.datasets import DataSetError
from qm_vllm_eval.datasets.something import open_something, plain

LABELS = {
    "Putting something onto something": "1",
    "Something falling like a rock": "2",
    "Moving part of something": "0",
}
ENTRIES: list[Any] = [
    {"id": "74225", "label": "putting cup onto shelf",
     "template": "Putting [something] onto [something]", "placeholders": ["cup", "shelf"]},
    {"id": "36585", "label": "pebble falling like a rock",
     "template": "[Something] falling like a rock", "placeholders": ["pebble"]},
    {"id": "3", "label": "moving lid of box",
     "template": "Moving [part] of [something]", "placeholders": ["lid", "box"]},
]  # fmt: skip


def write(
    root: Path, split: str = "validation", entries: Any = ENTRIES, prefix: str = "labels/"
) -> Path:
    videos = root / "20bn-something-something-v2"
    videos.mkdir(parents=True, exist_ok=True)
    for entry in ENTRIES:
        (videos / f"{entry['id']}.webm").write_bytes(b"x")
    for name, held in ((split, entries), ("labels", LABELS)):
        file = root / f"{prefix}{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(held), encoding="utf-8")
    return root


def test_rows_with_labels_by_template(tmp_path: Path) -> None:
    data = open_something(write(tmp_path))
    rows = list(data)
    assert [row.label for row in rows] == [1, 2, 0]
    assert [data.classes[row.label] for row in rows] == [row.template for row in rows]
    assert rows[0].template == "Putting something onto something"
    assert rows[0].placeholders == ("cup", "shelf")
    assert rows[1].caption == "pebble falling like a rock"
    assert rows[0].video == tmp_path / "20bn-something-something-v2" / "74225.webm"
    assert [row.row_id for row in rows] == ["ssv2-74225", "ssv2-36585", "ssv2-3"]
    assert all(row.usable for row in rows)
    assert list(data) == rows
    assert list(open_something(tmp_path / "labels")) == rows  # videos beside the folder


def test_the_older_names_of_the_files(tmp_path: Path) -> None:
    root = write(tmp_path, "train", prefix="something-something-v2-")
    assert len(list(open_something(root, "train"))) == 3
    elsewhere = root / "clips"
    (root / "20bn-something-something-v2").rename(elsewhere)
    rows = list(open_something(root, "train", videos=elsewhere))
    assert [row.usable for row in rows] == [True] * 3
    assert "there is no video" in next(iter(open_something(root, "train"))).reason


def test_the_test_split_with_and_without_answers(tmp_path: Path) -> None:
    root = write(tmp_path, "test", [{"id": entry["id"]} for entry in ENTRIES])
    rows = list(open_something(root, "test"))
    assert [(row.label, row.template, row.usable) for row in rows] == [(-1, "", True)] * 3
    answers = "74225;Something falling like a rock\n36585;Moving part of something\n3;Eating\n"
    (root / "labels" / "test-answers.csv").write_text(answers)
    told = list(open_something(root, "test"))
    assert [row.label for row in told] == [2, 0, -1]
    assert told[2].reason == "test.json[2]: labels.json has no template 'Eating'"


def test_what_is_wrong_with_a_video_is_its_reason(tmp_path: Path) -> None:
    bad: list[Any] = [
        {**ENTRIES[0], "id": "99"},
        {**ENTRIES[0], "template": "Eating [something]"},
        {**ENTRIES[1], "placeholders": "pebble"},
        {**ENTRIES[1], "id": "../1"},
        3,
        ENTRIES[2],
        ENTRIES[2],
    ]
    rows = list(open_something(write(tmp_path, entries=bad)))
    assert [row.usable for row in rows] == [False] * 5 + [True, False]
    assert rows[0].reason == f"there is no video {tmp_path}/20bn-something-something-v2/99.webm"
    assert rows[1].reason.endswith("labels.json has no template 'Eating [something]'")
    assert rows[2].reason == "validation.json[2] has no list of names as 'placeholders'"
    assert rows[3].reason == "validation.json[3] has no number as 'id'"
    assert rows[4].row_id == "validation.json[4]"
    assert rows[6].reason == "ssv2-3 is in validation.json more than once"


def test_files_of_another_form(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"no file or folder.*Something-Something v2.*Qualcomm"):
        open_something(tmp_path / "nothing")
    with pytest.raises(DataSetError, match=r"has no annotations \(validation\.json"):
        open_something(tmp_path)
    root = write(tmp_path, entries={"a": 1})
    with pytest.raises(DataSetError, match="holds a dict; it should be a list of videos"):
        open_something(root)
    (root / "labels" / "labels.json").write_text('{"Eating something": "1"}')
    with pytest.raises(DataSetError, match="does not number its templates 0 to 0"):
        open_something(root)
    (root / "labels" / "labels.json").write_text('{"Eating something": "one"}')
    with pytest.raises(DataSetError, match="has 'one' as the number of 'Eating something'"):
        open_something(root)
    with pytest.raises(DataSetError, match=r"no folder .* with the videos"):
        open_something(write(tmp_path), videos=tmp_path / "none")


def test_templates_lose_their_brackets() -> None:
    assert plain("Stacking [number of] [something]") == "Stacking number of something"
