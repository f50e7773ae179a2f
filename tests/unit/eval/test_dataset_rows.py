"""Reading parquet, csv and jsonl record by record, sound and corrupt."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from qm_vllm_eval.datasets import DataSetError
from qm_vllm_eval.datasets.rows import BATCH, files_of, records
from tests.unit.eval.record_files import write_records

KINDS = ("parquet", "csv", "jsonl")
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


def write(file: Path, held: list[dict[str, Any]]) -> Path:
    return write_records(file, held, row_group_size=7)


def read(file: Path, *required: str) -> list[tuple[dict[str, Any], str]]:
    return [(record.values, record.reason) for record in records(file, required or ("a",))]


@pytest.mark.parametrize("kind", KINDS)
def test_columns_asked_for_and_places(kind: str, tmp_path: Path) -> None:
    held = [{"a": f"text {i}", "b": f"{i}", "c": "other"} for i in range(3 * BATCH + 1)]
    found = list(records(write(tmp_path / f"x.{kind}", held), ("a",), ("b", "absent")))
    assert [record.values for record in found] == [{"a": r["a"], "b": r["b"]} for r in held]
    assert [record.place for record in found] == [f"x.{kind} row {i + 1}" for i in range(len(held))]
    assert not any(record.reason for record in found)


@pytest.mark.parametrize("kind", KINDS)
@given(held=st.lists(st.fixed_dictionaries({"a": TEXT, "b": TEXT}), min_size=1, max_size=20))
def test_any_text_comes_back(
    kind: str, held: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = write(tmp_path_factory.mktemp("rows") / f"x.{kind}", held)
    assert read(file, "a", "b") == [(record, "") for record in held]


def test_nulls_and_types_of_parquet_and_jsonl(tmp_path: Path) -> None:
    held = [{"a": None, "b": 1, "c": True}, {"a": "x", "b": 2, "c": False}]
    for kind in ("parquet", "jsonl"):
        found = read(write(tmp_path / f"x.{kind}", held), "a", "b", "c")
        assert [values for values, _ in found] == held


def test_csv_with_a_byte_order_mark_quotes_and_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes('\ufeffa,b\r\n"one, ""two""\r\nthree",é\r\n\r\nfour,\r\n'.encode())
    assert read(file, "a", "b") == [({"a": 'one, "two"\r\nthree', "b": "é"}, ""),
                                    ({"a": "four", "b": ""}, "")]  # fmt: skip


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_missing_column_is_an_error_of_the_file(kind: str, tmp_path: Path) -> None:
    file = write(tmp_path / f"x.{kind}", [{"a": "1", "b": "2"}])
    with pytest.raises(DataSetError, match=rf"x\.{kind} has no column 'c'; it has a, b"):
        read(file, "a", "c")


def test_a_missing_key_is_a_reason_of_its_line(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", [{"a": 1}, {"b": 2}])
    assert read(file) == [({"a": 1}, ""), ({}, "x.jsonl row 2 has no column 'a'")]


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("a,b,a\n1,2,3\n")
    with pytest.raises(DataSetError, match="has the column 'a' more than once"):
        read(file)
    assert read(file, "b") == [({"b": "2"}, "")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"a": "\xff"}', "is no JSON: byte 8 is not UTF-8"),
        (b'{"a": 1, "a": 2}', "is no JSON: the field 'a' stands there twice"),
        (b'{"a": "cut', "is no JSON: Unterminated string starting at column 7"),
        (b"null", "is a NoneType, not an object"),
        (b'"a"', "is a str, not an object"),
    ],
)
def test_a_broken_line_is_a_reason_and_the_rest_goes_on(
    line: bytes, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 3}')
    first, (values, found), last = read(file)
    assert (first, last) == (({"a": 1}, ""), ({"a": 3}, ""))
    assert values == {}
    assert found.startswith("x.jsonl row 2 ")
    assert reason in found


def test_jsonl_with_a_byte_order_mark_and_the_line_ends_of_windows(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": "1"}\r\n\r\n{"a": 1}\r\n{"a": NaN}')
    first, second, last = read(file)
    assert (first, second) == (({"a": "1"}, ""), ({"a": 1}, ""))
    assert last[0]["a"] != last[0]["a"]


def test_csv_rows_with_other_numbers_of_cells(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("a,b\n1\n1,2\n1,2,3\n")
    assert read(file, "a", "b") == [
        ({}, "x.csv row 1 has 1 cells, but there are 2 columns"),
        ({"a": "1", "b": "2"}, ""),
        ({}, "x.csv row 3 has 3 cells, but there are 2 columns"),
    ]


@pytest.mark.parametrize("content", [b'a\n1\n"never closed\n', b'a\n1\n"x"y\n', b"a\n1\n\xff\n"])
def test_csv_that_breaks_off_names_file_and_row(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes(content)
    with pytest.raises(DataSetError, match=r"x\.csv is no sound csv file after row [01]: "):
        read(file)


def test_text_in_parquet_that_is_no_utf8_is_a_reason_of_its_row(tmp_path: Path) -> None:
    file, held = tmp_path / "x.parquet", [{"a": f"text {i}é"} for i in range(20)]
    table = pa.Table.from_pylist(held)
    parquet.write_table(table, file, compression="NONE", use_dictionary=False)
    content = file.read_bytes()
    at = content.index("text 4é".encode()) + 6
    file.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    found = read(file)
    assert len(found) == 20
    assert [number for number, (_, reason) in enumerate(found) if reason] == [4]
    assert found[4][1].startswith("x.parquet row 5 cannot be decoded: 'utf-8' codec")


def test_parquet_with_flipped_bytes_never_raises_anything_else(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", [{"a": f"text {i}é" * 9, "b": i} for i in range(40)])
    sound, rng = file.read_bytes(), random.Random(0)
    refused: list[str] = []
    for _ in range(150):
        content = bytearray(sound)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        file.write_bytes(content)
        try:
            read(file, "a", "b")
        except DataSetError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert all("x.parquet" in message for message in refused)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"a,b\n1,2\n"])
def test_files_that_are_no_parquet(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    file.write_bytes(content)
    with pytest.raises(DataSetError, match=r"x\.parquet is no sound parquet file after row 0: "):
        read(file)


def test_parquet_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "x.parquet", [{"a": "1"}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataSetError, match="pip install pyarrow"):
        read(file)


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_gone(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=rf"x\.{kind} cannot be read: No such file"):
        read(tmp_path / f"x.{kind}")


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    for call in (lambda f: read(f), lambda f: files_of(f, "test")):
        file = tmp_path / "x.json"
        file.write_text("{}")
        with pytest.raises(DataSetError, match=r"of no known kind; give \.parquet, \.csv, \.jsonl"):
            call(file)


def test_files_of_a_split_by_name_and_by_folder(tmp_path: Path) -> None:
    for name in ("data/train-00001.parquet", "data/train-00000.parquet", "dev.csv", "test/a.jsonl",
                 "README.md"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = {s: [f.name for f in files_of(tmp_path, s)] for s in ("train", "validation", "test")}
    assert names == {
        "train": ["train-00000.parquet", "train-00001.parquet"],
        "validation": ["dev.csv"],
        "test": ["a.jsonl"],
    }
