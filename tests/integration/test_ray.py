"""Two Ray actors with real engines: the rows of the single process, and kills without a loss."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyarrow import parquet

pytest.importorskip("ray")

from qm_vllm_eval.ray import actors
from qm_vllm_eval.ray.runner import ACTORS, LOCAL, STOCK, RunOptions, run
from tests.integration.ray_task import RandomPrompts, settings

pytestmark = pytest.mark.slow

UNSTABLE = ("replica", "tries", "started", "seconds")
"""Columns that may differ from run to run."""
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tiny_models):
    return tiny_models("llama")


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    """Rows of the run without Ray, in one process; a second engine in this one would not start."""
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run(command(model, folder, LOCAL), cwd=ROOT, check=True, capture_output=True)
    rows = rows_of(folder)
    assert {row["row_id"] for row in rows if row["status"] == "failed"} == {"row-2"}
    assert len(rows) == 13
    embedded = rows[-1]
    assert embedded["row_id"] == "row-embeddings"
    assert len(embedded["tokens"]) == len(embedded["logprobs"]) == 24
    assert all(value <= 0 for value in embedded["logprobs"])
    assert {row["plugin"] for row in rows if row["ratio"] == 0.5} == {"compressed", None}
    return rows


def carry_out(model, folder, engine, tell=lambda row: None, replicas=2):
    options = RunOptions(folder, engine=engine, replicas=replicas)
    task = RandomPrompts(embeddings=engine != STOCK)
    return run(task, settings(model), "tiny", options, tell)


def command(model, folder, engine):
    """One run in a process of its own, with one replica."""
    return [sys.executable, "-m", "tests.integration.ray_task", str(model), str(folder), engine]


def rows_of(folder):
    rows = parquet.read_table(folder / "rows.parquet").to_pylist()
    return [{k: v for k, v in row.items() if k not in UNSTABLE} for row in rows]


def journal_keys(folder):
    lines = (folder / "journal.jsonl").read_text().splitlines()[1:]
    return [(row["row_id"], row["ratio"]) for row in map(json.loads, lines)]


def test_actors_give_the_rows_of_one_process_though_one_is_killed(model, alone, tmp_path,
                                                                  monkeypatch):
    pids: list[int] = []
    ready = actors.ActorPool.ready
    monkeypatch.setattr(actors.ActorPool, "ready", lambda self: pids.extend(ready(self)) or pids)
    told = []

    def kill_one(row):
        told.append(row)
        if len(told) == 2:
            os.kill(pids[0], signal.SIGKILL)

    carry_out(model, tmp_path, ACTORS, kill_one)
    assert len(set(pids)) == 2
    assert len(told) == 13
    assert rows_of(tmp_path) == alone
    assert sorted(journal_keys(tmp_path)) == sorted({(r["row_id"], r["ratio"]) for r in told})
    assert {row["replica"] for row in told} >= {"replica-0", "replica-1"}


def test_a_killed_driver_goes_on_where_it_was(model, alone, tmp_path):
    again = command(model, tmp_path, ACTORS)
    with subprocess.Popen(again, cwd=ROOT, stdout=subprocess.PIPE) as driver:
        for _ in range(4):  # two of them are rows that need no engine
            assert driver.stdout.readline() == b"row\n"
        os.kill(driver.pid, signal.SIGKILL)
    first = journal_keys(tmp_path)
    assert 4 <= len(first) < 13
    assert not (tmp_path / "rows.parquet").exists()
    done = subprocess.run(again, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.count("row\n") == 13 - len(first)
    assert sorted(journal_keys(tmp_path)) == sorted({(r["row_id"], r["ratio"]) for r in alone})
    assert rows_of(tmp_path) == alone


def test_the_stock_processor_gives_the_rows_of_one_process_though_an_engine_is_killed(
    model, alone, tmp_path
):
    told = []

    def kill_one(row):
        told.append(row)
        if sum(r["status"] == "ok" for r in told) == 2:
            os.kill(stock_worker(), signal.SIGKILL)

    carry_out(model, tmp_path, STOCK, kill_one, replicas=1)
    without = [row | {"logprobs": None} for row in alone if row["row_id"] != "row-embeddings"]
    assert rows_of(tmp_path) == without
    assert len(journal_keys(tmp_path)) == len(told) == 12
    wait_until_gone("ray::MapWorker(MapBatches(ReportingUDF", 60)
    wait_until_gone("VLLM::EngineCore", 30)


def stock_worker():
    """Process of an actor of Ray Data that holds an engine."""
    return children_named("ray::MapWorker(MapBatches(ReportingUDF")[0]


def children_named(beginning):
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if (folder / "cmdline").read_text().startswith(beginning):
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return found


def wait_until_gone(name, seconds):
    """No process of that name is left behind after a while."""
    end = time.monotonic() + seconds
    while children_named(name) and time.monotonic() < end:
        time.sleep(0.5)
    assert not children_named(name)
