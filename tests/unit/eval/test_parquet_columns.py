"""Text in parquet, however a writer stored it: the right value, or a reason for that row alone."""

from __future__ import annotations

import decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from qm_vllm_eval.datasets.booksum import EMPTY_CHAPTER, open_booksum
from qm_vllm_eval.datasets.rows import records
from qm_vllm_eval.datasets.wikitext import open_wikitext

TEXTS = ["one \u00e9", None, "\u4e09 three", ""]
STORED: dict[str, Any] = {
    "string": lambda texts: pa.array(texts, pa.string()),
    "large_string": lambda texts: pa.array(texts, pa.large_string()),
    "string_view": lambda texts: pa.array(texts, pa.string_view()),
    "dictionary": lambda texts: pa.array(texts, pa.string()).dictionary_encode(),
    "large dictionary": lambda texts: pa.array(texts, pa.large_string()).dictionary_encode(),
    "binary": lambda texts: pa.array([t and t.encode() for t in texts], pa.binary()),
    "large_binary": lambda texts: pa.array([t and t.encode() for t in texts], pa.large_binary()),
    "binary dictionary": lambda texts: (
        pa.array([None if t is None else t.encode() for t in texts], pa.binary())
        .dictionary_encode()
    ),
}
"""How a writer may store text; pa.array([""]) of binary has to be bytes, so "" becomes None."""


def write(file: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table(columns), file)
    return file


@pytest.mark.parametrize("kind", STORED)
def test_text_comes_back_as_text(kind: str, tmp_path: Path) -> None:
    texts = [text or None for text in TEXTS] if "binary" in kind else TEXTS
    file = write(tmp_path / "x.parquet", a=STORED[kind](texts))
    found = list(records(file, ("a",)))
    assert [record.values["a"] for record in found] == texts
    assert not any(record.reason for record in found)


@pytest.mark.parametrize("kind", STORED)
def test_chapters_are_equal_however_they_are_stored(kind: str, tmp_path: Path) -> None:
    def book(how: Any) -> dict[str, Any]:
        return {
            "bid": pa.array([1, 2, 3]), "is_aggregate": pa.array([False, False, None]),
            "chapter": how(["A chapter.", None, "A third."]),
            "summary_text": how(["Short.", "Lost.", "Shorter."]),
            "book_id": how(["b.1", "b.2", "b.3"]), "source": pa.nulls(3),
        }

    rows = list(open_booksum(write(tmp_path / "test.parquet", **book(STORED[kind]))))
    plain = list(open_booksum(write(tmp_path / "plain.parquet", **book(STORED["string"]))))
    assert [(row.row_id, row.chapter, row.references, row.title) for row in rows] == [
        (row.row_id, row.chapter, row.references, row.title) for row in plain
    ]
    assert [row.usable for row in rows] == [True, False, True]
    assert rows[1].reason == f"test.parquet row 2: {EMPTY_CHAPTER}"


def test_text_inside_lists_and_structs(tmp_path: Path) -> None:
    held = [{"part": [b"one", None], "n": 1}, {"part": [], "n": None}]
    (first, second) = records(write(tmp_path / "x.parquet", a=pa.array(held)), ("a",))
    assert first.values["a"] == {"part": ["one", None], "n": 1}
    assert second.values["a"] == {"part": [], "n": None}


def test_bytes_that_are_no_utf8_cost_their_row(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", a=pa.array([b"one", b"\xff\xfe", b"three"], pa.binary()))
    first, second, third = records(file, ("a",))
    assert (first.values, third.values) == ({"a": "one"}, {"a": "three"})
    assert second.reason.startswith("x.parquet row 2 cannot be decoded: 'utf-8' codec")


@pytest.mark.parametrize(
    ("chapter", "reason"),
    [
        (pa.nulls(2), "column 'chapter' is empty"),
        (pa.array([None, None], pa.string()), "column 'chapter' is empty"),
        (pa.array(["", " \n"], pa.string()), "column 'chapter' is empty"),
        (pa.array([float("nan"), None], pa.float64()), "column 'chapter' is empty"),
        (pa.array([["a", "b"], []]), "column 'chapter' holds a list, not a text"),
        (pa.array([{"text": "a"}, {"text": "b"}]), "column 'chapter' holds a dict, not a text"),
    ],
)
def test_columns_without_text_are_a_reason_of_each_row(
    chapter: Any, reason: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "test.parquet", bid=pa.array([1, 2]), is_aggregate=pa.nulls(2),
                 chapter=chapter, summary_text=pa.array(["s", "t"]))  # fmt: skip
    rows = list(open_booksum(file))
    assert [row.reason for row in rows] == [f"test.parquet row {n}: {reason}" for n in (1, 2)]


def test_numbers_and_flags_of_any_type(tmp_path: Path) -> None:
    ids = pa.array([1, 2, 3])
    kinds = [ids, ids.cast(pa.float64()), ids.cast(pa.string()), ids.dictionary_encode(),
             pa.array([decimal.Decimal(i) for i in (1, 2, 3)])]  # fmt: skip
    flags = [pa.array([True, False, None]), pa.array([1, 0, None], pa.int8()),
             pa.array(["True", "false", None]).dictionary_encode()]  # fmt: skip
    found = set()
    for number, bids in enumerate(kinds):
        for other, flag in enumerate(flags):
            file = write(tmp_path / f"{number}-{other}.parquet", bid=bids, is_aggregate=flag,
                         chapter=pa.array(["a", "b", "c"]),
                         summary_text=pa.array(["s", "t", "u"]))  # fmt: skip
            found.add(tuple(row.row_id for row in open_booksum(file) if row.usable))
    assert len(found) == 1
    assert len(next(iter(found))) == 2


@pytest.mark.parametrize("kind", STORED)
def test_articles_of_wikitext(kind: str, tmp_path: Path) -> None:
    lines = ["\n", " = Title = \n", "\n", " Some words . \n"]
    stored = STORED[kind](lines)
    (row,) = open_wikitext(write(tmp_path / "test.parquet", text=stored))
    assert (row.title, row.usable) == ("Title", True)
    assert "Some words" in row.text
