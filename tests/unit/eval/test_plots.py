"""Figures of a study: which are drawn, and what is in them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from qm_vllm_eval.row import Row
from qm_vllm_eval.study.plot_style import styles
from qm_vllm_eval.study.plots import Picture, draw_all, inline_svg, write_pictures
from qm_vllm_eval.study.results import results_by_family
from tests.unit.eval.study_rows import failed, frame, study


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    rows: list[Row] = study() + study(task="code", family="code") + study(query_visible=True)
    rows += [failed("peer", 0.5, index, "not installed: it") for index in range(4)]
    return draw_all(results_by_family(frame(rows), resamples=50))


def test_one_figure_per_mode_and_quality(pictures: list[Picture]) -> None:
    assert [picture.name for picture in pictures] == [
        "retention-1000-blind", "retention-1000-visible", "match-1000-blind", "match-1000-visible",
    ]


def test_what_a_figure_shows(pictures: list[Picture]) -> None:
    first = pictures[0]
    assert first.png.startswith(b"\x89PNG")
    ElementTree.fromstring(first.svg)
    for text in ("retrieval", "code", "quickmerge", "random", "plain", "beyond the scale"):
        assert f">{text}" in first.svg
    assert ">peer<" not in first.svg
    assert ">code<" not in pictures[1].svg
    assert ">beyond" not in pictures[2].svg


def test_files(pictures: list[Picture], tmp_path: Path) -> None:
    paths = write_pictures(pictures[:1], tmp_path / "plots")
    assert [path.name for path in paths] == [
        "retention-1000-blind.png", "retention-1000-blind.svg",
    ]


def test_inline_drawing_has_no_address_and_own_names(pictures: list[Picture]) -> None:
    one, two = inline_svg(pictures[0]), inline_svg(pictures[1])
    assert one.startswith("<svg viewBox=")
    assert "http" not in one
    assert "var(--ink)" in one
    assert "#1d1d1b" not in one
    assert 'id="retention-1000-blind-' in one
    assert 'id="retention-1000-blind-' not in two
    ElementTree.fromstring(one)


def test_nothing_to_draw() -> None:
    rows = [one for one in study() if one.method in ("none", "plain")]
    assert draw_all(results_by_family(frame(rows), resamples=50)) == []


def test_styles_are_distinct_and_mark_own_methods() -> None:
    names = ["none", "plain", "quickmerge", "quickmerge-b", *(f"peer{i}" for i in range(30))]
    looks = styles(names)
    assert set(looks) == set(names[2:])
    assert len({(s.colour, s.marker, str(s.line)) for s in looks.values()}) == len(looks)
    assert looks["quickmerge"].own
    assert looks["quickmerge"].width > looks["peer0"].width
    assert looks == styles(names[::-1])
