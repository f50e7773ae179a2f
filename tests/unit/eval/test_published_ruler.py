"""Tables and the picture of RULER, from studies that the tests write."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from qm_vllm_eval.published import ruler, ruler_plot
from qm_vllm_eval.published.catalogue import block
from qm_vllm_eval.published.form import Unknown
from qm_vllm_eval.study.results import COLUMNS

FULL_BYTES = 4096 * 12288
SCORES = {"native": 0.8, "quickmerge": 0.6, "kvpress-kvzip": 0.7, "kvpress-compactor": 0.5}


def row(task: str, method: str, ratio: float, match: float, **other: object) -> dict[str, object]:
    held = {
        "task": task, "family": "ruler", "method": method, "ratio": ratio, "match": match,
        "samples": 4, "kv_bytes": ratio * FULL_BYTES, "length": 4096, "status": "ok",
    }
    return dict.fromkeys(COLUMNS, "") | held | other


def study(folder: Path, rows: list[dict[str, object]]) -> None:
    folder.mkdir(parents=True)
    with (folder / "results.csv").open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def rows() -> list[dict[str, object]]:
    """Every task of every method; the first task's score is 13 hundredths higher."""
    made = []
    for place, task in enumerate(ruler.NAMES):
        more = 0.13 if place == 0 else 0.0
        made += [row(task, "none", 0.0, 0.0), row(task, "plain", 1.0, 0.85 + more)]
        for method, score in SCORES.items():
            made += [row(task, method, 1 / times, score / times + more) for times in ruler.TIMES]
    return made


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ruler, "STUDIES", tmp_path)
    return tmp_path


def test_the_mean_over_all_tasks_stands_at_each_ratio(studies: Path) -> None:
    study(studies / ruler.FOLDERS["visible"], rows())
    lines = block("ruler visible").splitlines()
    assert lines[0] == "| method | full | 2x | 4x | 8x | 16x | samples a task |"
    assert lines[2] == "| native | 86.0 | 41.0 | 21.0 | 11.0 | 6.0 | 4 |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| native", "| quickmerge", "| kvpress-compactor", "| kvpress-kvzip",
    ]


def test_a_ratio_that_lacks_a_task_has_no_mean(studies: Path) -> None:
    held = rows()
    for one in held:
        if one["task"] == "cwe" and one["method"] == "native":
            if one["ratio"] == 0.25:
                one["status"] = "ok (1 of 4 failed: out of memory)"
            if one["ratio"] == 0.5:
                one["samples"] = 2
    study(studies / ruler.FOLDERS["blind"], [*held, row("vt", "native", 0.5, 0.0, length=8192)])
    assert "| native | 86.0 | 41.0 |  | 11.0 | 6.0 | 2-4 |" in block("ruler blind")
    native = next(line for line in block("ruler-tasks blind 1/4").splitlines() if "native" in line)
    assert native.split("|")[2 + ruler.NAMES.index("cwe")].strip() == ""
    assert native.endswith("|  |")


def test_methods_by_tasks_at_one_ratio(studies: Path) -> None:
    study(studies / ruler.FOLDERS["visible"], rows())
    lines = block("ruler-tasks visible 1/4").splitlines()
    assert lines[0] == f"| method | {' | '.join(ruler.NAMES)} | mean |"
    assert lines[2] == f"| full prompt | 98.0 |{' 85.0 |' * 12} 86.0 |"
    assert lines[3] == f"| native | 33.0 |{' 20.0 |' * 12} 21.0 |"
    with pytest.raises(Unknown, match="nothing at 1/3"):
        block("ruler-tasks visible 1/3")


def test_a_later_run_has_its_own_full_prompt(studies: Path) -> None:
    study(studies / ruler.FOLDERS["visible"], [
        one for one in rows() if one["method"] != "native"
    ])
    later = [
        one | {"match": one["match"] / 2, "kv_bytes": 2 * one["kv_bytes"]}
        for one in rows() if one["method"] in ("none", "plain", "native")
    ]
    study(studies / (ruler.FOLDERS["visible"] + ruler.LATER), later)
    lines = block("ruler visible").splitlines()
    assert lines[2] == "| native | 43.0 | 20.5 | 10.5 | 5.5 | 3.0 | 4 |"
    assert lines[3].startswith("| quickmerge | 86.0 |")
    lines = block("ruler-tasks visible 1/4").splitlines()
    assert lines[-1].startswith("| full prompt, as native | 49.0 | 42.5 |")
    held = ruler_plot._joined(ruler.runs("visible"))
    assert ruler.mean(held["native", 0.5], "kv_bytes") == FULL_BYTES / 2


def test_what_there_is_not_is_said(studies: Path) -> None:
    with pytest.raises(Unknown, match="no RULER 'both'"):
        block("ruler both")
    with pytest.raises(Unknown, match="no file"):
        block("ruler blind")
    study(studies / ruler.FOLDERS["blind"], [one for one in rows() if one["task"] != "fwe"])
    with pytest.raises(Unknown, match="no full prompt of fwe"):
        block("ruler blind")


def test_the_picture_is_small_and_tells_methods_apart_without_colour(studies: Path) -> None:
    for mode in ruler.FOLDERS:
        study(studies / ruler.FOLDERS[mode], rows())
    file = ruler_plot.draw()
    assert file == studies / ruler.FOLDERS["visible"] / "ruler.png"
    assert file.read_bytes().startswith(b"\x89PNG")
    assert file.stat().st_size < 100_000
    names = [*ruler.FIRST, *(f"kvpress-{n}" for n in (
        "snapkv", "pyramidkv", "expected-attention", "keydiff", "compactor", "kvzip",
    ))]
    looks = ruler_plot._looks(names)
    assert len({(look.marker, look.own) for look in looks.values()}) == len(names)
