"""WikiText-103's loader on invented articles, as text, as records, and broken."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qm_vllm_eval.datasets import DataSetError
from qm_vllm_eval.datasets.wikitext import HUB_CONFIG, WIKITEXT, WikiTextRow, open_wikitext
from tests.unit.eval.record_files import write_records

LINES = [
    " ",
    " = First Lamp = ",
    " ",
    " A lamp @-@ like thing . ",
    " = not a heading = ",
    " ",
    " = = Use = = ",
    " ",
    " It burns . ",
    " ",
    " = = = Oil = = = ",
    " ",
    " Of <unk> . ",
    " ",
    " = Second ( 1 = 2 ) = ",
    " ",
    " Short . ",
]


def write_text(file: Path, lines: list[str] = LINES) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return file


def hub_lines(lines: list[str] = LINES) -> list[dict[str, Any]]:
    """As on the hub: a line with its end, or nothing for an empty line."""
    return [{"text": line + "\n" if line.strip() else ""} for line in lines]


def test_articles_with_their_sections(tmp_path: Path) -> None:
    data = open_wikitext(write_text(tmp_path / "wiki.test.tokens"))
    first, second = data
    assert (first.title, second.title) == ("First Lamp", "Second ( 1 = 2 )")
    assert first.usable
    assert first.text.startswith("= First Lamp = \n\n A lamp @-@ like thing . \n")
    assert "= not a heading =" in first.text
    assert "= = = Oil = = =" in first.text
    assert first.text.endswith("Of <unk> .")
    assert second.text.endswith("Short .")
    assert [row.row_id for row in data] == ["article-00001", "article-00002"]
    assert list(data) == [first, second]


def test_raw_tokens_parquet_and_jsonl_give_the_same_rows(tmp_path: Path) -> None:
    raw = list(open_wikitext(write_text(tmp_path / "a" / "wiki.valid.raw")))
    for kind in ("parquet", "jsonl"):
        file = write_records(tmp_path / f"validation-00000-of-00001.{kind}", hub_lines())
        assert list(open_wikitext(file, "validation")) == raw
    assert list(open_wikitext(write_text(tmp_path / "b" / "wiki.valid.tokens"))) == raw


def test_splits_of_a_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "wikitext-103" / "wiki.train.tokens", LINES[13:])
    write_text(tmp_path / "wikitext-103" / "wiki.valid.tokens", LINES)
    assert [row.title for row in open_wikitext(tmp_path, "train")] == ["Second ( 1 = 2 )"]
    assert len(list(open_wikitext(tmp_path, "validation"))) == 2
    with pytest.raises(DataSetError, match=r"no wiki\.test\.raw; get WikiText-103 from .*CC-BY-SA"):
        open_wikitext(tmp_path, "test")
    write_text(tmp_path / "wikitext-103-raw" / "wiki.train.raw")
    with pytest.raises(DataSetError, match="more than one variant"):
        open_wikitext(tmp_path, "train")


def test_an_article_goes_on_in_the_next_parquet_file(tmp_path: Path) -> None:
    held = hub_lines()
    write_records(tmp_path / "train-00000-of-00002.parquet", held[:9])
    write_records(tmp_path / "train-00001-of-00002.parquet", held[9:])
    whole = list(open_wikitext(write_text(tmp_path / "t" / "wiki.train.raw")))
    assert list(open_wikitext(tmp_path / "t", "train")) == whole
    (tmp_path / "t" / "wiki.train.raw").unlink()
    assert list(open_wikitext(tmp_path, "train")) == whole
    part, second = open_wikitext(tmp_path / "train-00001-of-00002.parquet")
    assert part.reason == "train-00001-of-00002.parquet row 2: text before the first heading"
    assert second.usable
    assert second.title == whole[1].title


def test_bad_articles_have_a_reason(tmp_path: Path) -> None:
    file = write_text(tmp_path / "wiki.test.raw", [*LINES, " ", " = Empty = ", " "])
    file.write_bytes(file.read_bytes().replace(b"It burns", b"It \xff burns"))
    first, second, empty = open_wikitext(file)
    assert first.reason.startswith("wiki.test.raw line 9 cannot be decoded")
    assert first.text == ""
    assert second.usable
    assert empty.reason == "wiki.test.raw line 19: the article 'Empty' has no text"
    odd = write_records(tmp_path / "odd.jsonl", [{"text": " = A = \n"}, {"text": ""}, {"text": 3}])
    (row,) = open_wikitext(odd)
    assert row == WikiTextRow(
        "article-00001", title="A", reason="odd.jsonl row 3 has a int as 'text'"
    )


def test_what_is_no_wikitext(tmp_path: Path) -> None:
    file = write_text(tmp_path / "wiki.test.raw", ["some text", "", "more"])
    with pytest.raises(DataSetError, match=r"wiki\.test\.raw has no heading"):
        list(open_wikitext(file))
    with pytest.raises(DataSetError, match="has no column 'text'"):
        list(open_wikitext(write_records(tmp_path / "x.parquet", [{"line": "a"}])))
    with pytest.raises(DataSetError, match="has no split 'dev'"):
        open_wikitext(file, "dev")
    with pytest.raises(
        DataSetError, match=r"no file or folder.*huggingface.co/datasets/Salesforce"
    ):
        open_wikitext(tmp_path / "nothing")


def test_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def load_dataset(name: str, config: str, split: str, streaming: bool) -> Any:
        asked.append((name, config, split, streaming))
        if split == "train":
            raise OSError("no network")
        return hub_lines() if split == "test" else [{"line": 1}]

    assert WIKITEXT.hub == "Salesforce/wikitext"
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    local = list(open_wikitext(write_text(tmp_path / "wiki.test.raw")))
    assert list(open_wikitext(WIKITEXT.hub, "test")) == local
    assert asked == [(WIKITEXT.hub, HUB_CONFIG, "test", True)]
    with pytest.raises(DataSetError, match="could not be opened on the hub: no network"):
        open_wikitext(WIKITEXT.hub, "train")
    with pytest.raises(DataSetError, match="row 1 has no column 'text'"):
        list(open_wikitext(WIKITEXT.hub, "validation"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataSetError, match=r"pip install datasets.*get WikiText-103 from"):
        open_wikitext(WIKITEXT.hub)


def test_a_hub_that_breaks_off_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(*_: Any, **__: Any) -> Any:
        yield from hub_lines(LINES[:4])
        raise ConnectionError("reset by peer")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=stream))
    with pytest.raises(DataSetError, match="wikitext broke off after row 4: reset by peer"):
        list(open_wikitext("Salesforce/wikitext"))
