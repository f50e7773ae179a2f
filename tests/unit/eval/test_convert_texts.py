"""Conversion of the fetched packages: what becomes of markup and of title pages."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from qm_vllm_eval import convert_texts


def test_markdown_keeps_headings_and_loses_markup() -> None:
    raw = (
        '# A.1 What is _this_?\n\nA **bold** word and\na [link](secB1.html "title") here\n'
        "[ _A Book_ , p. 3].\n\n> a quoted\n> line\n\n  * an item with snake_case\n\n* * *\n\n"
        '[\u2039 back](secA0.md "Go") [next \u203a](secA2.md)\n'
    )
    assert convert_texts.markdown_text(raw).split("\n\n") == [
        "# A.1 What is this?",
        "A bold word and a link here [A Book, p. 3].",
        "a quoted line",
        "an item with snake_case",
    ]


def test_novel_begins_with_its_first_chapter() -> None:
    lines = [
        "A NOVEL",
        "",
        "CHAPTER I",
        "",
        "One line",
        "and _another_.",
        "",
        "",
        "Two.",
        "",
        "FINIS",
    ]
    assert convert_texts.novel_text(lines) == "CHAPTER I\n\nOne line and another.\n\nTwo.\n"


def test_faq_sections_are_in_order_and_headed(tmp_path: Path) -> None:
    (tmp_path / "secA10.md").write_text("# A.10 Last\n\nten\n")
    (tmp_path / "secA2.md").write_text("Without a heading\n")
    (tmp_path / "secA1.md.gz").write_bytes(gzip.compress(b"# A.1 First\n\none\n"))
    (tmp_path / "secAint.md").write_text("left out")
    assert convert_texts.faq_text(tmp_path) == (
        "# A.1 First\n\none\n\n# A.2\n\nWithout a heading\n\n# A.10 Last\n\nten\n"
    )


def test_missing_packages_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert_texts.main([str(tmp_path / "root"), str(tmp_path / "texts")]) == 1
    assert "convert_texts:" in capsys.readouterr().err
    assert list((tmp_path / "texts").iterdir()) == []
