"""The journal: what survives a cut, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from qm_vllm_eval.ray.journal import FILE, Journal, JournalError, settings_hash

SETTINGS = {"task": "fake", "max_tokens": 8}


def row(number, status="ok", **more):
    return {"row_id": f"row-{number}", "ratio": 0.5, "status": status, **more}


def test_rows_come_back_and_are_done(tmp_path):
    with Journal(tmp_path, SETTINGS) as journal:
        journal.add(row(1, text="naïve\n“quoted”"))
        journal.add(row(0))
    with Journal(tmp_path, SETTINGS) as again:
        assert again.done == {("row-0", 0.5), ("row-1", 0.5)}
        assert [r["row_id"] for r in again.table()] == ["row-0", "row-1"]
        assert again.table()[1]["text"] == "naïve\n“quoted”"


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_run_again(tmp_path, cut):
    with Journal(tmp_path, SETTINGS) as journal:
        for number in range(3):
            journal.add(row(number))
    path = tmp_path / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Journal(tmp_path, SETTINGS) as again:
        assert again.done == {("row-0", 0.5), ("row-1", 0.5)}
        again.add(row(2))
    assert path.read_bytes() == whole


def test_a_torn_first_line_begins_anew(tmp_path):
    (tmp_path / FILE).write_text('{"journal": 1, "ha')
    with Journal(tmp_path, SETTINGS) as journal:
        assert journal.done == set()
        journal.add(row(0))
    with Journal(tmp_path, SETTINGS) as again:
        assert len(again.done) == 1


def test_a_line_in_the_middle_that_is_damaged_is_named(tmp_path):
    with Journal(tmp_path, SETTINGS) as journal:
        journal.add(row(0))
        journal.add(row(1))
    path = tmp_path / FILE
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{oops", lines[2]]) + "\n")
    with pytest.raises(JournalError, match="line 2 of"):
        Journal(tmp_path, SETTINGS)


def test_other_settings_are_refused_by_name(tmp_path):
    Journal(tmp_path, SETTINGS).close()
    with pytest.raises(JournalError, match="max_tokens"):
        Journal(tmp_path, SETTINGS | {"max_tokens": 9})
    assert settings_hash({"a": 1, "b": 2}) == settings_hash({"b": 2, "a": 1})


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / FILE
    path.write_text('{"id": 1}\n')
    with pytest.raises(JournalError, match="no journal"):
        Journal(tmp_path, SETTINGS)
    assert path.read_text() == '{"id": 1}\n'


def test_failed_rows_run_again_only_if_asked_and_the_last_line_counts(tmp_path):
    with Journal(tmp_path, SETTINGS) as journal:
        journal.add(row(0, "failed"))
        journal.add(row(1))
    with Journal(tmp_path, SETTINGS) as again:
        assert len(again.done) == 2
    with Journal(tmp_path, SETTINGS, retry_failed=True) as again:
        assert again.done == {("row-1", 0.5)}
        again.add(row(0))
    with Journal(tmp_path, SETTINGS) as last:
        assert [r["status"] for r in last.table()] == ["ok", "ok"]


def test_two_processes_do_not_write_one_journal(tmp_path):
    code = (
        "import sys, json, pathlib; from qm_vllm_eval.ray.journal import *\n"
        "try: Journal(pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]))\n"
        "except JournalError as error: print(error)"
    )
    with Journal(tmp_path, SETTINGS):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), json.dumps(SETTINGS)],
            capture_output=True, text=True, check=True,
        )
    assert "another process writes" in done.stdout
    Journal(tmp_path, SETTINGS).close()
