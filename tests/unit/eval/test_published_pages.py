"""Every figure between marks is the one of the committed files."""

from __future__ import annotations

import re

import pytest

from qm_vllm_eval.published import __main__ as command
from qm_vllm_eval.published.blocks import names, rewritten
from qm_vllm_eval.published.catalogue import block, value
from qm_vllm_eval.published.form import Unknown, figure, ratio_of
from qm_vllm_eval.published.stored import ROOT, STUDIES

QUERY = "<!-- v:query 2048 quickmerge 1/4 recall -->{}<!-- /v -->"


def test_pages_say_what_the_files_say(capsys):
    assert command.main(["--check"]) == 0, capsys.readouterr().out + (
        "run python -m qm_vllm_eval.published")


def test_the_page_of_results_has_no_table_of_figures_outside_marks():
    text = (STUDIES / "README.md").read_text(encoding="utf-8")
    outside = re.sub(r"<!-- begin generated.*?<!-- end generated -->", "", text, flags=re.DOTALL)
    tables = [line for line in outside.splitlines() if line.startswith("|")]
    assert not [line for line in tables if re.search(r"\d\.\d", line)]
    assert len(names(text)) >= 4


def test_a_figure_that_was_changed_by_hand_is_found_and_put_right(tmp_path, monkeypatch, capsys):
    page = tmp_path / "README.md"
    page.write_text(f"# A page\n\nRecall is {QUERY.format('9.99')}.\n")
    monkeypatch.setattr(command, "ROOT", tmp_path)
    assert command.main(["--check"]) == 1
    assert "README.md: differs" in capsys.readouterr().out
    assert "9.99" in page.read_text()
    assert command.main([]) == 0
    assert page.read_text() == f"# A page\n\nRecall is {QUERY.format('1.04')}.\n"
    assert command.main(["--check"]) == 0


def test_a_table_keeps_what_stands_around_it():
    text = "before\n<!-- begin generated: adaptive -->\nold\n<!-- end generated -->\nafter\n"
    new = rewritten(text, block, value)
    assert new.startswith("before\n<!-- begin generated: adaptive -->\n| policy |")
    assert new.endswith("|\n<!-- end generated -->\nafter\n")
    assert rewritten(new, block, value) == new


@pytest.mark.parametrize("text", [
    "<!-- begin generated: adaptive -->\n",
    "<!-- end generated -->\n",
    "<!-- v:even h200 -->8,380",
    "8,380<!-- /v -->",
    "<!-- v:even h200 -->8,380<!-- v:even h200 -->8,380<!-- /v -->",
])
def test_a_mark_without_its_partner_is_refused(text):
    with pytest.raises(Unknown, match="partner"):
        rewritten(text, block, value)


@pytest.mark.parametrize(("name", "maker"), [
    ("nothing", block), ("retention query 2048", block), ("claims nothing", block),
    ("retention nothing 2048 1/4", block), ("noted nothing", block),
    ("nothing", value), ("query 2048 quickmerge 1/4 nothing", value), ("even epyc", value),
    ("bench h200/prefill 1 speedup", value), ("bench h200/prefill 2048 nothing", value),
    ("paper medium 1 nothing ppl", value), ("ego4d quickmerge 0.5 R@1-0.3", value),
    ("phase epyc-avx2/phases 4096 nothing", value), ("noted demo nothing", value),
    ("file benchmarks/results/h200/prefill.json floor nothing here", value),
    ("file benchmarks/results/h200/prefill.json floor", value),
])
def test_a_name_without_figures_is_refused(name, maker):
    with pytest.raises(Unknown):
        maker(name)


def test_an_unknown_name_says_on_which_page(tmp_path, monkeypatch, capsys):
    (tmp_path / "README.md").write_text("<!-- v:nothing -->1<!-- /v -->\n")
    monkeypatch.setattr(command, "ROOT", tmp_path)
    assert command.main([]) == 2
    assert "README.md: no maker 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "form", "said"), [
    (0.866, ".2f", "0.87"), (0.866, "lost%", "13 %"), (0.0475, "ms", "48 ms"),
    (2.171, "s", "2.17 s"), (1731, ",", "1,731"), ("1.29", ".2f", "1.29"),
    (0.005, "%", "0.5 %"), (840.3, "minutes", "14"),
])
def test_forms(number, form, said):
    assert figure(number, form) == said


def test_ratios():
    assert ratio_of("1/4") == 0.25
    assert ratio_of("0.33") == 0.33


def test_the_pages_of_the_checkout_are_looked_at():
    found = {page.relative_to(ROOT).as_posix() for page in command.pages(ROOT)}
    assert {"README.md", "docs/decisions.md", "benchmarks/README.md",
            "eval/results/paper/README.md"} <= found
