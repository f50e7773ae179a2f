"""The tables of eval/results say what the committed CSV files say."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

RESULTS = Path(__file__).parents[3] / "eval" / "results"


def tables(page: str = "README.md") -> Iterator[tuple[str, float, list[list[str]]]]:
    """Section heading, ratio last named (NaN: none) and cells of each table of a page."""
    section, ratio, lines = "", math.nan, []
    for line in [*(RESULTS / page).read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            lines.append([cell.strip(" *") for cell in line.strip("|").split("|")])
            continue
        if lines:
            yield section, ratio, [lines[0], *lines[2:]]
            lines = []
        if line.startswith("## "):
            section, ratio = line, math.nan
        elif found := re.fullmatch(r"Ratio 1/(\d+):", line):
            ratio = 1 / int(found.group(1))


def retention_tables(page: str = "README.md") -> list[tuple[str, float, list[list[str]]]]:
    return [table for table in tables(page) if table[2][0][0] == "method"]


def test_llmlingua_is_that_of_the_csv() -> None:
    ((_, _, cells),) = retention_tables()
    frame = pd.read_csv(RESULTS / "smollm2-peers" / "results.csv")
    checked = 0
    for line in cells[1:]:
        own = frame[(frame["method"] == line[0]) & ((frame["ratio"] - float(line[1])).abs() < 1e-6)]
        values = own.set_index("task")["retention"]
        for name, said in zip(cells[0][2:], line[2:], strict=True):
            value = values.get(name, math.nan)
            assert (said == "") == math.isnan(value), (line[0], name)
            if said:
                assert float(said) == pytest.approx(value, abs=0.00501), (line[0], name)
                checked += 1
    assert checked >= 39


def check_line(head: list[str], line: list[str], values: pd.Series) -> int:
    """A method's line says the retentions by family; how many figures were compared."""
    for family, said in zip(head[1:], line[1:], strict=True):
        assert float(said) == pytest.approx(values[family], abs=0.00501), (line[0], family)
    return len(line) - 1


def test_every_table_was_looked_at() -> None:
    assert len(retention_tables()) == 1
    assert len(list(tables())) == 5
    pages = ("query.md", "blind.md", "gemma.md")
    assert [len(retention_tables(page)) for page in pages] == [6, 6, 1]


@pytest.mark.parametrize("page", ["README.md"])
def test_the_headline_is_that_of_the_csv(page: str) -> None:
    """Ours with their intervals, and no other method above the best that is named."""
    checked = 0
    for section, _, cells in tables(page):
        if cells[0][0] != "ratio":
            continue
        length = int(re.sub(r"\D", "", section))
        names = ("smollm2-query", "smollm2-peers") if length == 2048 else ("smollm2-blind",)
        frame = pd.concat(pd.read_csv(RESULTS / name / "families.csv") for name in names)
        for line in cells[1:]:
            share = 1 / float(line[0].partition("/")[2])
            own = frame[(frame["ratio"] - share).abs() < 1e-3]
            for family, said in zip(cells[0][2:], line[2:], strict=True):
                part = own[own["family"] == family].set_index("method")["retention"]
                if line[1] == "best of the others":
                    ours = part.index.str.startswith("quickmerge") | (part.index == "head-cover")
                    wanted = part[~ours].max()
                else:
                    wanted = part[line[1]]
                assert float(said.split()[0]) == pytest.approx(wanted, abs=0.00501), (line, family)
                checked += 1
    assert checked == 3 * 2 * 8 + 3 * 3 * 5


@pytest.mark.parametrize(("section", "ratio", "cells"), retention_tables("query.md"))
def test_the_new_default_against_the_peers(
    section: str, ratio: float, cells: list[list[str]]
) -> None:
    """Own rows from the runs of today's default; rows that these do not have from the peers'."""
    length = int(re.sub(r"\D", "", section))
    frames = [
        pd.read_csv(RESULTS / name / "families.csv")
        for name in ("smollm2-query", "smollm2-query-4096", "smollm2-peers")
    ]
    checked = 0
    for line in cells[1:]:
        wanted = 1.0 if line[0] == "fp8" else ratio
        for frame in frames:
            own = frame[
                (frame["method"] == line[0]) & (frame["length"] == length)
                & frame["query_visible"] & ((frame["ratio"] - wanted).abs() < 1e-6)
            ].set_index("family")["retention"]
            if len(own):
                break
        checked += check_line(cells[0], line, own)
    assert checked >= 12


def test_eight_thousand_tokens() -> None:
    """Its one table has a family a line: NLL of four prompts, two retentions, an interval."""
    ((section, ratio, cells),) = [t for t in tables("query.md") if t[2][0][0] == "family"]
    frame = pd.read_csv(RESULTS / "smollm2-query-8000" / "families.csv")
    assert set(frame["length"]) == {int(re.sub(r"\D", "", section))}
    assert set(frame["ratio"]) == {0, 1, ratio}
    assert [line[0] for line in cells[1:]] == sorted(set(frame["family"]))
    for family, samples, *said in cells[1:]:
        own = frame[frame["family"] == family].set_index("method")
        assert set(own["samples"]) == {int(samples)}
        ours = own.loc["quickmerge"]
        values = [own["nll"][name] for name in ("plain", "none", "quickmerge", "truncation")]
        values += [ours["retention"], ours["retention_lo"], ours["retention_hi"]]
        values.append(own["retention"]["truncation"])
        figures = [float(part) for cell in said for part in cell.split(" to ")]
        assert figures == pytest.approx(values, abs=0.00501), family


@pytest.mark.parametrize(("section", "ratio", "cells"), retention_tables("blind.md"))
def test_query_blind_tables(section: str, ratio: float, cells: list[list[str]]) -> None:
    folder = "smollm2-blind-end" if "32 tokens" in section else "smollm2-blind"
    frame = pd.read_csv(RESULTS / folder / "families.csv")
    assert not frame["query_visible"].any()
    checked = 0
    for line in cells[1:]:
        wanted = 1.0 if line[0] == "fp8" else ratio
        own = frame[(frame["method"] == line[0]) & ((frame["ratio"] - wanted).abs() < 1e-3)]
        checked += check_line(cells[0], line, own.set_index("family")["retention"])
    assert checked >= 10


@pytest.mark.parametrize(("section", "ratio", "cells"), retention_tables("gemma.md"))
def test_the_table_of_another_family(section: str, ratio: float, cells: list[list[str]]) -> None:
    frame = pd.read_csv(RESULTS / "gemma-3-270m" / "families.csv")
    assert set(frame["length"]) == {int(re.sub(r"\D", "", section))}
    for line in cells[1:]:
        own = frame[(frame["method"] == line[0]) & (frame["ratio"] == ratio)]
        values = own.set_index("family")["retention"]
        assert check_line(cells[0], line, values) == len(values)


def test_adaptive_budgets_do_not_beat_a_fixed_share() -> None:
    """What docs/decisions.md says of the published curve, and the table there."""
    frame = pd.read_csv(RESULTS / "adaptive" / "policies.csv")
    by = {policy: part["retention"].tolist() for policy, part in frame.groupby("policy")}
    assert set(by) == {"fixed", "alpha", "max_error", "oracle"}
    for policy in ("alpha", "max_error"):
        assert all(own <= same + 0.005 for own, same in zip(by[policy], by["fixed"], strict=True))
    assert all(own > same for own, same in zip(by["oracle"], by["fixed"], strict=True))
    text = (RESULTS.parents[1] / "docs" / "decisions.md").read_text(encoding="utf-8")
    for policy, values in by.items():
        cells = " | ".join(f"{value:.2f}" for value in values)
        assert f"| {policy} | {cells} |" in text
