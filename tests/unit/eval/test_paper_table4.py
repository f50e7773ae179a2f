"""Table 4: what it reads from the commands' summaries, and what a failed command leaves."""

from __future__ import annotations

import json
import subprocess

import pytest

from qm_vllm_eval.paper import table4
from qm_vllm_eval.paper.scale import SCALES
from qm_vllm_eval.paper.table4 import Table4Data, command, last_sentence, rows

KEYS = {
    "task", "metric", "baseline", "baseline_low", "baseline_high", "quickmerge", "quickmerge_low",
    "quickmerge_high", "difference", "tokens_baseline", "tokens_quickmerge", "change_tokens",
    "rows", "data", "paper_baseline", "paper_quickmerge", "paper_tokens_baseline",
    "paper_tokens_quickmerge", "reason",
}


def part(ratio, value, kept, way=None, count=6):
    names = ("rougeL", table4.AVERAGE_PRECISION, table4.RECALL)
    value = {"mean": value, "low": None if value is None else value - 0.1,
             "high": None if value is None else value + 0.1}
    return {"ratio": ratio, **({"way": way} if way else {}), "rows": count, "failed": 0,
            "metrics": dict.fromkeys(names, value), "means": {"kept_tokens": kept}}


def summary(*parts, failed=0):
    return {"rows": 12, "failed": failed, "ratios": list(parts)}


EGO4D = summary(part(1.0, 0.4, 600.0, "quickmerge"), part(0.4167, 0.3, 250.0, "quickmerge"),
                part(0.4167, 0.5, 250.0, "random"))
BOOKSUM = summary(part(1.0, 0.2, 1000.0), part(0.4167, 0.25, 400.0), failed=1)


@pytest.fixture
def commands(monkeypatch):
    """Commands that were run; each writes the summary of its name, or prints and fails."""
    lines = []
    answers = {"booksum": (BOOKSUM, 1), "ego4d-nlq": (EGO4D, 0)}

    def fake(line, *, stdout, **rest):
        lines.append(line)
        found, code = answers[line[4]]
        if isinstance(found, str):
            stdout.write(found)
        else:
            folder = table4.Path(line[line.index("--out") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "summary.json").write_text(json.dumps(found))
        return subprocess.CompletedProcess(line, code)

    monkeypatch.setattr(table4.subprocess, "run", fake)
    fake.lines, fake.answers = lines, answers
    return fake


def option(line, name):
    return line[line.index(name) + 1] if name in line else None


def test_small_reads_both_summaries_in_per_cent(commands, tmp_path):
    found = rows(SCALES["small"], tmp_path, Table4Data())
    assert [set(row) for row in found] == [KEYS] * 5
    assert [(row["task"], row["metric"]) for row in found] == [
        ("BookSum", "ROUGE-L"), ("Ego4D-NLQ", "AP@0.5"), ("Ego4D-NLQ", "R@1 IoU 0.3"),
        (table4.RANDOM, "AP@0.5"), (table4.RANDOM, "R@1 IoU 0.3"),
    ]
    book, precision, _, guessed, _ = found
    assert book["baseline"] == pytest.approx(20)
    assert (book["quickmerge_low"], book["quickmerge_high"]) == pytest.approx((15, 35))
    assert book["difference"] == pytest.approx(5)
    assert book["change_tokens"] == pytest.approx(-60)
    assert (book["rows"], book["reason"]) == (6, "1 of 12 rows have failed")
    assert (book["paper_baseline"], book["paper_tokens_quickmerge"]) == (36.2, 1682)
    assert precision["quickmerge"] == pytest.approx(30)
    assert (precision["paper_quickmerge"], precision["reason"]) == (40.3, "")
    assert guessed["quickmerge"] == pytest.approx(50)
    assert guessed["baseline"] == precision["baseline"]
    assert guessed["paper_baseline"] is None
    json.dumps(found)


def test_the_commands_are_those_of_the_scale(commands, tmp_path):
    rows(SCALES["smoke"], tmp_path, Table4Data(ego4d="mine"))
    (smoke,) = commands.lines  # BookSum is not run
    assert smoke[1:5] == ["-m", "qm_vllm.cli.main", "eval", "ego4d-nlq"]
    assert [option(smoke, name) for name in
            ("--data", "--train-minutes", "--limit", "--replicas", "--ratios")] == [
        "synthetic", "0.1", "6", "0", "1.0,0.4167"]
    rows(SCALES["medium"], tmp_path, Table4Data(model="big"))
    book, ego = commands.lines[1:]
    assert option(book, "--limit") is option(ego, "--limit") is None
    assert (option(book, "--data"), option(book, "--model")) == ("micro", "big")


def test_smoke_says_that_booksum_is_not_run(commands, tmp_path):
    book = rows(SCALES["smoke"], tmp_path, Table4Data())[0]
    assert (book["reason"], book["rows"], book["baseline"]) == (table4.NOT_RUN, 0, None)


def test_full_without_data_says_where_to_get_them(commands, tmp_path):
    found = rows(SCALES["full"], tmp_path, Table4Data(ego4d=str(tmp_path / "none")))
    assert not commands.lines
    assert len(found) == 5
    assert "huggingface.co/datasets/kmfoda/booksum" in found[0]["reason"]
    assert all("ego4d-data.org" in row["reason"] for row in found[1:])
    assert all(row["quickmerge"] is None for row in found)


def test_a_failed_command_gives_its_sentence(commands, tmp_path):
    commands.answers["ego4d-nlq"] = ("training\nerror: there is no disk\n", 1)
    found = rows(SCALES["smoke"], tmp_path, Table4Data())[1:]
    assert [row["reason"] for row in found] == ["qm-vllm eval ego4d-nlq: there is no disk"] * 4
    assert [row["baseline"] for row in found] == [None] * 4


def test_the_summary_of_an_earlier_run_is_not_that_of_a_failed_one(commands, tmp_path):
    assert command("booksum", tmp_path / "b", [])[0] == BOOKSUM
    commands.answers["booksum"] = ("", 2)
    assert command("booksum", tmp_path / "b", []) == (None, "qm-vllm eval booksum: exit code 2")


def test_a_summary_without_figures_gives_a_reason(commands, tmp_path):
    commands.answers["ego4d-nlq"] = (summary(part(1.0, None, None, "quickmerge", 0)), 1)
    found = rows(SCALES["smoke"], tmp_path, Table4Data())[1]
    assert found["reason"] == "no row has a figure at both ratios"
    assert found["difference"] is None


@pytest.mark.parametrize(("text", "told"), [
    ("", ""), ("a\nb\n\n", "b"), ("x\nerror: no such file\nbye\n", "no such file"),
])
def test_last_sentence(text, told):
    assert last_sentence(text) == told
