"""Tables of retention as Markdown."""

from __future__ import annotations

from pathlib import Path

from qm_vllm_eval.study.markdown import write_tables
from qm_vllm_eval.study.results import results_by_family
from tests.unit.eval.study_rows import failed, frame, row, study


def test_tables_hold_the_figures_of_each_mode_and_ratio(tmp_path: Path) -> None:
    rows = study() + study(task="code", family="code") + study(query_visible=True)
    rows += [row("fp8", 1.0, 1.0 + index, index) for index in range(4)]
    rows += [failed("peer", 0.5, index, "not installed") for index in range(4)]
    path = write_tables(results_by_family(frame(rows), resamples=50), tmp_path)
    blind, visible = path.read_text().split("question visible")
    assert path.name == "tables.md"
    for line in (
        "| samples | 4 | 4 |",
        "| NLL, full prompt | 2.50 | 2.50 |",
        "| NLL, no context | 6.50 | 6.50 |",
        "| quickmerge | 0.500 | 0.75 [0.75, 0.75] | 0.75 [0.75, 0.75] |",
        "| quickmerge | 0.250 | 0.50 [0.50, 0.50] | 0.50 [0.50, 0.50] |",
        "| random | 0.250 | -1.00 [-1.00, -1.00] | -1.00 [-1.00, -1.00] |",
        "| peer |  |  |  |",
    ):
        assert line in blind
    # One budget alone: shown at every ratio, blank where the family has no figure.
    assert blind.count("| fp8 | 1.000 |  | 1.00 [1.00, 1.00] |") == 2
    assert "| quickmerge | 0.500 | 0.75 [0.75, 0.75] |\n" in visible
    assert "code" not in visible
