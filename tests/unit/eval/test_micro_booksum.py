"""The micro-set: our summaries as a file, and the chapters where the novels are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qm_vllm_eval import haystacks
from qm_vllm_eval.datasets import DataSetError, micro_booksum
from qm_vllm_eval.rouge import rouge

NOVEL = "northanger_abbey"
KNOWN_FROM_ELSEWHERE = {"Allens", "Baronetage", "Elliots", "Ishmael", "Pequod"}


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of novels."""
    monkeypatch.setenv("QM_VLLM_CACHE", str(tmp_path))
    (tmp_path / "texts").mkdir()
    return tmp_path / "texts"


def test_twelve_chapters_with_two_summaries_each() -> None:
    entries = micro_booksum.entries()
    assert len({(entry["novel"], entry["chapter"]) for entry in entries}) == 12
    assert micro_booksum.FILE.stat().st_size < 60_000
    for entry in entries:
        assert 1500 <= entry["words"] <= 4500
        one, other = entry["summaries"]
        assert 80 <= len(one.split()) <= 150
        assert 80 <= len(other.split()) <= 150
        # Told twice, not copied: long runs of equal words would show in ROUGE-2.
        assert rouge(one, [other])["rouge2"] < 0.2


def test_chapters_are_counted_through_volumes(texts: Path) -> None:
    (texts / f"{NOVEL}.txt").write_text(
        "CHAPTER I\n\nOne.\n\nChapter two of this book is not a heading.\n\nCHAPTER II\n\nTwo."
        "\n\nVOLUME II\n\nCHAPTER I. A Title\n\nThree.\n\nFour.\n"
    )
    assert micro_booksum.chapter_text(NOVEL, 1).startswith("One.\n\nChapter two")
    assert micro_booksum.chapter_text(NOVEL, 2) == "Two."
    assert micro_booksum.chapter_text(NOVEL, 3) == "Three.\n\nFour."
    with pytest.raises(DataSetError, match="has 3 chapters, so there is no 4"):
        micro_booksum.chapter_text(NOVEL, 4)


def test_another_edition_has_a_reason(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"right": 2182, "wrong": 2000}
    for name, count in words.items():
        (texts / f"{name}.txt").write_text("Chapter 1\n\n" + "word " * count)
    entry = {"chapter": 1, "words": 2182, "summaries": ["a", "b"]}
    monkeypatch.setattr(micro_booksum, "entries", lambda: [{**entry, "novel": n} for n in words])
    right, wrong = micro_booksum.micro_rows()
    assert right.usable
    assert right.references == ("a", "b")
    assert "another edition" in wrong.reason


def test_missing_novels_and_splits_are_refused(texts: Path) -> None:
    with pytest.raises(DataSetError, match=r"northanger_abbey is not on this machine.*fetch_texts"):
        list(micro_booksum.micro_rows())
    with pytest.raises(ValueError, match="there are"):
        list(micro_booksum.micro_rows("test"))


@pytest.mark.skipif("novels" not in haystacks.available(), reason="needs scripts/fetch_texts.sh")
def test_the_real_chapters() -> None:
    rows = list(micro_booksum.micro_rows())
    assert [row.reason for row in rows] == [""] * 12
    assert len({row.row_id for row in rows}) == 12
    report = {row.row_id for row in micro_booksum.micro_rows("report")}
    tune = {row.row_id for row in micro_booksum.micro_rows("tune")}
    assert (len(report), len(tune)) == (10, 2)
    assert report | tune == {row.row_id for row in rows}
    by_id = {row.row_id: row for row in rows}
    assert by_id["micro-moby-dick-130"].chapter.startswith("And now that at the proper time")
    assert by_id["micro-emma-2"].chapter.startswith("Mr. Weston was a native of Highbury")


@pytest.mark.skipif("novels" not in haystacks.available(), reason="needs scripts/fetch_texts.sh")
def test_names_in_the_summaries_are_in_their_chapters() -> None:
    """Of the words with a capital inside a sentence; five names from elsewhere apart."""
    for row in micro_booksum.micro_rows():
        for summary in row.references:
            names = set(re.findall(r"(?<=[a-z,;] )[A-Z][a-z]{2,}", summary))
            unknown = {name for name in names if name not in row.chapter}
            assert unknown <= KNOWN_FROM_ELSEWHERE, row.row_id
