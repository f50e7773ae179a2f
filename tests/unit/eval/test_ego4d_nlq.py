"""Ego4D NLQ's annotations as published, and what may be wrong in them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from qm_vllm_eval.datasets import DataSetError
from qm_vllm_eval.datasets.ego4d_nlq import EMPTY_QUERY, Ego4dNlq
from tests.unit.eval.nlq_files import Change, write_nlq


def test_rows_of_a_published_file(tmp_path: Path) -> None:
    data = write_nlq(tmp_path)
    rows = list(data)
    assert [row.row_id for row in rows] == ["v0/c0/c0-a/0", "v0/c0/c0-a/1", "v0/c1/c1-a/0",
                                            "v1/c2/c2-a/0"]  # fmt: skip
    assert all(row.usable for row in rows)
    assert [row.window for row in rows] == [(1.0, 5.0), (2.0, 2.0), (0.5, 31.5), (4.0, 8.0)]
    assert [row.zero_length for row in rows] == [False, True, False, False]
    assert rows[0].key == ("c0", "c0-a", 0)
    assert rows[0].query == "Where is the cup?"
    assert rows[0].template.startswith("Objects:")
    assert rows[0].clip_seconds == pytest.approx(32 - 0.0210286)
    assert data.skipped == {EMPTY_QUERY: 2}
    assert [row.row_id for row in data] == [row.row_id for row in rows]
    assert data.skipped == {EMPTY_QUERY: 2}


def test_truths_need_no_features(tmp_path: Path) -> None:
    data = write_nlq(tmp_path)
    for file in (tmp_path / "features").iterdir():
        file.unlink()
    truths = data.truths()
    assert truths == {
        ("c0", "c0-a", 0): (1.0, 5.0),
        ("c0", "c0-a", 1): (2.0, 2.0),
        ("c1", "c1-a", 0): (0.5, 31.5),
        ("c2", "c2-a", 0): (4.0, 8.0),
    }
    assert len(data.truths(zero_length=False)) == 3


def test_a_test_split_has_no_windows(tmp_path: Path) -> None:
    def without(held: dict[str, Any]) -> None:
        for video in held["videos"]:
            for entry in video["clips"]:
                for asked in entry["annotations"][0]["language_queries"]:
                    del asked["clip_start_sec"]
                    asked["clip_end_sec"] = None

    data = write_nlq(tmp_path, without)
    rows = list(data)
    assert len(rows) == 4
    assert all(row.usable and row.window is None and not row.zero_length for row in rows)
    assert data.truths() == {}


def the_clip(held: dict[str, Any]) -> dict[str, Any]:
    return held["videos"][0]["clips"][0]


def the_query(held: dict[str, Any]) -> dict[str, Any]:
    return the_clip(held)["annotations"][0]["language_queries"][0]


Q0 = "nlq_val.json videos[0].clips[0].annotations[0].language_queries[0]"
MALFORMED: dict[str, tuple[Change, str, int]] = {
    "video is null": (
        lambda h: h["videos"].__setitem__(0, None), "nlq_val.json videos[0] has no 'video_uid'", 1
    ),
    "uid is a number": (
        lambda h: h["videos"][0].update(video_uid=7), "nlq_val.json videos[0] has no 'video_uid'", 1
    ),
    "no clips": (
        lambda h: h["videos"][0].pop("clips"), "nlq_val.json videos[0] has no list 'clips'", 1
    ),
    "uid is a path": (
        lambda h: h["videos"][0].update(video_uid="../v0"), "'../v0' is no file name", 3
    ),
    "uid is too long": (
        lambda h: h["videos"][0].update(video_uid="v" * 300), ".pt cannot be read: OSError", 3
    ),
    "clip without start": (
        lambda h: the_clip(h).pop("video_start_sec"),
        "clips[0] has None as 'video_start_sec', not a number of seconds", 2,
    ),
    "clip without length": (
        lambda h: the_clip(h).update(video_end_sec=0), "has no length: 0.0210286 to 0.0 s", 2
    ),
    "clip before its video": (
        lambda h: the_clip(h).update(video_start_sec=-5), "starts before its video, at -5.0 s", 2
    ),
    "no annotations": (
        lambda h: the_clip(h).update(annotations={}), "clips[0] has no list 'annotations'", 2
    ),
    "no queries": (
        lambda h: the_clip(h)["annotations"][0].pop("language_queries"),
        "annotations[0] has no list 'language_queries'", 2,
    ),
    "query is text": (
        lambda h: the_clip(h)["annotations"][0]["language_queries"].__setitem__(0, "Where?"),
        f"{Q0} is no object", 3,
    ),
    "asks with a list": (lambda h: the_query(h).update(query=["a"]), "has a list as 'query'", 3),
    "end is missing": (
        lambda h: the_query(h).pop("clip_end_sec"), f"{Q0} has None as 'clip_end_sec'", 3
    ),
    "start is text": (
        lambda h: the_query(h).update(clip_start_sec="1"), f"{Q0} has '1' as 'clip_start_sec'", 3
    ),
    "start is true": (lambda h: the_query(h).update(clip_start_sec=True), f"{Q0} has True as", 3),
    "start is NaN": (lambda h: the_query(h).update(clip_start_sec=float("nan")), "has nan as", 3),
    "start is infinite": (lambda h: the_query(h).update(clip_start_sec=-1e999), "has -inf as", 3),
    "start is huge": (lambda h: the_query(h).update(clip_start_sec=10**400), "has 10000", 3),
    "ends first": (
        lambda h: the_query(h).update(clip_end_sec=0.5), "ends before it starts: 1.0 to 0.5 s", 3
    ),
    "outside": (
        lambda h: the_query(h).update(clip_start_sec=50, clip_end_sec=60),
        "lies outside its clip: 50.0 to 60.0 s of 31.97", 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_parts_are_the_reason_and_the_rest_goes_on(
    case: str, tmp_path: Path
) -> None:
    change, reason, expected = MALFORMED[case]
    data = write_nlq(tmp_path, change)
    *rows, last = data
    assert len(rows) == expected
    assert reason in rows[0].reason
    assert rows[0].features is None
    assert last.usable
    assert len({row.row_id for row in rows}) == len(rows)
    assert last.key in data.truths()


def test_a_query_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    def twice(held: dict[str, Any]) -> None:
        held["videos"].append(copy.deepcopy(held["videos"][1]))
        held["videos"][2]["clips"] *= 2

    data = write_nlq(tmp_path, twice)
    rows = list(data)
    assert [row.usable for row in rows] == [True] * 4 + [False] * 2
    assert "v1/c2/c2-a/0 is in the file more than once" in rows[4].reason
    assert len({row.row_id for row in rows}) == 6
    assert len(data.truths()) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[]", "has no list 'videos'; give nlq_train.json or nlq_val.json"),
        (b'{"videos": {}}', "has no list 'videos'"),
    ],
)
def test_annotations_that_are_none(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "nlq_val.json"
    file.write_bytes(content)
    with pytest.raises(DataSetError, match=message):
        Ego4dNlq(file, tmp_path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"nlq_val\.json cannot be read: No such file"):
        Ego4dNlq(tmp_path / "nlq_val.json", tmp_path)
    (tmp_path / "nlq_val.json").write_text('{"videos": []}')
    with pytest.raises(DataSetError, match=r"there is no folder .*features"):
        Ego4dNlq(tmp_path / "nlq_val.json", tmp_path / "features")
    assert list(Ego4dNlq(str(tmp_path / "nlq_val.json"), str(tmp_path))) == []


