"""BookSum's loader on invented records with the published columns, in all formats and broken."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qm_vllm_eval.datasets import DataSetError
from qm_vllm_eval.datasets.booksum import (
    AGGREGATE,
    COLUMNS,
    EMPTY_CHAPTER,
    EMPTY_SUMMARY,
    HUB_NAME,
    BookSumRow,
    chat_prompt,
    open_booksum,
)
from qm_vllm_eval.datasets.rows import records, unusable, within_length
from tests.unit.eval.record_files import write_records

FIXTURE = Path(__file__).parent / "data" / "booksum_columns.csv"
FORMATS = ("csv", "jsonl", "parquet")


def fixture_records() -> list[dict[str, Any]]:
    """The fixture's records with the types of the hub: int, bool, null."""
    with FIXTURE.open(encoding="utf-8", newline="") as lines:
        held: list[dict[str, Any]] = list(csv.DictReader(lines))
    for record in held:
        record["bid"] = int(record["bid"])
        record["is_aggregate"] = record["is_aggregate"] == "True"
        record["chapter"] = record["chapter"] or None
    return held


def write(folder: Path, kind: str, held: list[dict[str, Any]], name: str = "test") -> Path:
    return write_records(folder / f"{name}.{kind}", held)


def test_fixture_has_the_published_columns() -> None:
    with FIXTURE.open(encoding="utf-8", newline="") as lines:
        assert tuple(next(csv.reader(lines))) == COLUMNS
    assert len(fixture_records()) == 6


@pytest.mark.parametrize("kind", FORMATS)
def test_chapters_with_all_their_summaries(kind: str, tmp_path: Path) -> None:
    data = open_booksum(write(tmp_path, kind, fixture_records()))
    first, second, third = list(data)
    assert first.usable
    assert first.chapter.startswith("Ada climbed")
    assert first.chapter.count("\n\n") == 1
    assert [reference[:10] for reference in first.references] == ["Ada carrie", "Before sun"]
    assert first.sources == ("invented-a", "invented-b")
    assert first.title == "The Lamp.chapter 1"
    assert second.usable
    assert second.references == ("At noon the boat comes. Brun sells his nets and Ada travels with "
                                 "her lamp.",)  # fmt: skip
    assert not third.usable
    assert third.reason == f"test.{kind} row 6: {EMPTY_CHAPTER}"
    assert data.skipped == {AGGREGATE: 1, EMPTY_SUMMARY: 1, EMPTY_CHAPTER: 1}
    assert [row.row_id for row in data] == [first.row_id, second.row_id, third.row_id]


def test_ids_are_equal_for_all_formats_and_orders(tmp_path: Path) -> None:
    held = fixture_records()
    ids = {
        frozenset(row.row_id for row in open_booksum(write(tmp_path, kind, held)))
        for kind in FORMATS
    }
    ids.add(frozenset(r.row_id for r in open_booksum(write(tmp_path, "jsonl", held[::-1], "r"))))
    ids.add(frozenset(row.row_id for row in open_booksum(FIXTURE)))
    assert len(ids) == 1
    assert len(next(iter(ids))) == 3


def test_chapters_without_paths_are_told_apart_by_their_text(tmp_path: Path) -> None:
    held = [{"bid": 1, "is_aggregate": False, "chapter": f"text {i // 2}", "summary_text": f"s{i}"}
            for i in range(4)]  # fmt: skip
    rows = list(open_booksum(write(tmp_path, "jsonl", held)))
    assert [row.references for row in rows] == [("s0", "s1"), ("s2", "s3")]
    assert rows[0].row_id != rows[1].row_id


def test_broken_lines_come_out_with_a_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = fixture_records()[0]
    lines = [b"{not json", json.dumps(good).encode(), b"[1]", b'{"bid": 1}', b'{"bid": "\xff"}']
    file = tmp_path / "test.jsonl"
    file.write_bytes(b"\n".join(lines) + b"\n\n")
    rows = list(open_booksum(file))
    assert [row.usable for row in rows] == [False, True, False, False, False]
    assert "test.jsonl row 1 is no JSON" in rows[0].reason
    assert rows[2].reason == "test.jsonl row 3 is a list, not an object"
    assert rows[3].reason == "test.jsonl row 4 has no column 'is_aggregate'"
    assert "row 5 is no JSON" in rows[4].reason


def test_a_chapter_with_one_bad_record_uses_the_good_one(tmp_path: Path) -> None:
    good = fixture_records()[0]
    odd = {**good, "is_aggregate": "perhaps", "summary_text": "another"}
    data = open_booksum(write(tmp_path, "jsonl", [odd, good]))
    (row,) = data
    assert row.usable
    assert row.references == (good["summary_text"],)
    assert data.skipped == {"column 'is_aggregate' holds 'perhaps'": 1}
    (bad,) = open_booksum(write(tmp_path, "jsonl", [odd]))
    assert bad.reason == "test.jsonl row 1: column 'is_aggregate' holds 'perhaps'"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_missing_column_names_file_and_column(kind: str, tmp_path: Path) -> None:
    held = [{k: v for k, v in record.items() if k != "chapter"} for record in fixture_records()]
    file = write(tmp_path, kind, held)
    with pytest.raises(DataSetError, match=rf"test\.{kind} has no column 'chapter'"):
        list(open_booksum(file))


def test_files_that_are_not_what_they_seem(tmp_path: Path) -> None:
    for kind in ("parquet", "csv"):
        file = tmp_path / f"bad.{kind}"
        file.write_bytes(b"bid,is_aggregate,chapter,summary_text\n1,False,\xff\xfe\xff,x\n")
        with pytest.raises(DataSetError, match=f"bad.{kind}"):
            list(open_booksum(file))
    short = tmp_path / "short.csv"
    short.write_text("bid,is_aggregate,chapter,summary_text\n1,False,text\n1,False,text,sum\n")
    rows = list(open_booksum(short))
    assert rows[0].reason == "short.csv row 1 has 3 cells, but there are 4 columns"
    assert rows[1].references == ("sum",)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataSetError, match="no column 'bid'; it has no column at all"):
        list(open_booksum(tmp_path / "empty.csv"))
    with pytest.raises(DataSetError, match="of no known kind"):
        open_booksum(write_text(tmp_path / "notes.txt"))
    with pytest.raises(DataSetError, match="no file or folder"):
        open_booksum(tmp_path / "nothing")
    with pytest.raises(DataSetError, match="there are train, validation, test"):
        open_booksum(FIXTURE, "dev")


def write_text(file: Path) -> Path:
    file.write_text("text")
    return file


def test_a_truncated_parquet_file_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path, "parquet", fixture_records())
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataSetError, match=r"test\.parquet"):
        list(open_booksum(file))


def test_folders_by_split(tmp_path: Path) -> None:
    held = fixture_records()
    write(tmp_path, "csv", held[:1], "train")
    write(tmp_path, "csv", held[4:5], "dev")
    assert [row.title for row in open_booksum(tmp_path, "train")] == ["The Lamp.chapter 1"]
    assert [row.title for row in open_booksum(tmp_path, "validation")] == ["The Lamp.chapter 2"]
    with pytest.raises(DataSetError, match=r"no file of the split 'test'; it has dev\.csv"):
        open_booksum(tmp_path, "test")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataSetError, match=r"holds no \.parquet"):
        open_booksum(tmp_path / "none")
    alone = tmp_path / "alone"
    alone.mkdir()
    write(alone, "csv", held, "all")
    assert len(list(open_booksum(alone, "test"))) == 3


def test_long_chapters_and_few_records_at_a_time(tmp_path: Path) -> None:
    """A cell longer than the csv module's own limit; and reading stops when nobody asks."""
    held = [{**fixture_records()[0], "chapter": "word " * 60_000}] * 40
    for kind in FORMATS:
        file = write(tmp_path, kind, held)
        (row,) = open_booksum(file)
        assert len(row.chapter) == 299_999
        stream = records(file, ("chapter",))
        assert set(next(stream).values) == {"chapter"}
        stream.close()


def test_the_hub_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataSetError, match=r"no file or folder kmfoda/booksum here.*pip install"):
        open_booksum(HUB_NAME)


def test_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, split: str, streaming: bool) -> Any:
        asked.append((name, split, streaming))
        if split == "train":
            raise OSError("no network")
        return fixture_records()

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    ids = [row.row_id for row in open_booksum(HUB_NAME, "test")]
    assert ids == [row.row_id for row in open_booksum(FIXTURE)]
    assert asked == [(HUB_NAME, "test", True)]
    with pytest.raises(DataSetError, match="could not be opened on the hub: no network"):
        open_booksum(HUB_NAME, "train")


def test_a_hub_that_breaks_off_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(*_: Any, **__: Any) -> Any:
        yield fixture_records()[0]
        raise ConnectionError("reset by peer")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=stream))
    with pytest.raises(DataSetError, match="booksum broke off after row 1: reset by peer"):
        list(open_booksum(HUB_NAME))


def test_the_prompt_is_the_chapter_and_then_the_instruction() -> None:
    row = BookSumRow("a", chapter="Once upon a time.", references=("x",))
    (message,) = chat_prompt(row, words=90)
    assert message["role"] == "user"
    assert message["content"].startswith("Once upon a time.\n\n")
    assert "about 90 words" in message["content"]


def test_too_long_chapters_get_a_reason_and_keep_an_earlier_one() -> None:
    row = BookSumRow("a", chapter="one two three", references=("x",))
    count = lambda text: len(text.split())  # noqa: E731
    assert within_length(row, row.chapter, count, 3) is row
    long = within_length(row, row.chapter, count, 2)
    assert long.reason == "a has 3 tokens, more than the 2 allowed"
    assert unusable(long, "other").reason == long.reason
