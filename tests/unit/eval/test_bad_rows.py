"""Rows that break other programs, through the evaluations: each is one error row, the rest runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from qm_vllm import local_engine
from qm_vllm.assets.embedded import ensure_model
from qm_vllm.cli.main import app
from qm_vllm_eval.datasets.ego4d_nlq import EMPTY_QUERY
from qm_vllm_eval.ego4d.report import comparison, markdown
from qm_vllm_eval.ego4d.task import Ego4dTask, chance
from qm_vllm_eval.ray import report, work
from qm_vllm_eval.ray.booksum import BookSumTask
from qm_vllm_eval.ray.journal import Journal
from qm_vllm_eval.ray.table import row_of, write
from qm_vllm_eval.ray.work import TOO_LONG, UNUSABLE, Answer, EngineSettings, Outcome
from tests.unit.eval.nlq_files import published, query, sound_features, write_nlq
from tests.unit.prior.conftest import make

FAKE = "tests.unit.eval.ray_fakes:FakeReplica"
GOOD = {"bid": 1, "is_aggregate": False, "summary_text": "A summary."}


def chapters(folder: Path, *records: bytes | dict[str, Any]) -> Path:
    """A jsonl file whose first and last rows are sound."""
    lines = [{**GOOD, "chapter": "First chapter."}, *records, {**GOOD, "chapter": "Last chapter."}]
    file = folder / "test.jsonl"
    file.write_bytes(b"\n".join(
        line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines
    ))
    return file


BAD: dict[str, tuple[Any, str, str]] = {
    "an empty chapter": ({**GOOD, "chapter": ""}, UNUSABLE, "'chapter' is empty"),
    "spaces": ({**GOOD, "chapter": " \n\t"}, UNUSABLE, "'chapter' is empty"),
    "none": ({**GOOD, "chapter": None}, UNUSABLE, "'chapter' is empty"),
    "not a number": ({**GOOD, "chapter": float("nan")}, UNUSABLE, "'chapter' is empty"),
    "ten times the window": ({**GOOD, "chapter": "word " * 4000}, TOO_LONG, "at most 400"),
    "a thousand times": ({**GOOD, "chapter": "word " * 400_000}, TOO_LONG, "more than"),
    "half a pair": ({**GOOD, "chapter": "cut \ud83d"}, UNUSABLE,
                    "holds half of a surrogate pair (\\ud83d) at character 5, which is no text"),
    "half a pair as bytes": (b'{"bid": 1, "is_aggregate": 0, "chapter": "\xed\xa0\xbd", '
                             b'"summary_text": "s"}', UNUSABLE, "is not UTF-8"),
    "half a pair in a summary": ({**GOOD, "chapter": "c", "summary_text": "\ud83d"}, UNUSABLE,
                                 "'summary_text' holds half of a surrogate pair"),
    "a list": ({**GOOD, "chapter": ["a", "b"]}, UNUSABLE, "holds a list, not a text"),
    "no summary": ({**GOOD, "chapter": "c", "summary_text": None}, UNUSABLE, "is empty"),
    "a column less": ({"bid": 1, "is_aggregate": False}, UNUSABLE, "has no column 'chapter'"),
    "a cut line": (b'{"bid": 1, "chap', UNUSABLE, "is no JSON"),
    "twice": (b'{"bid": 1, "bid": 2}', UNUSABLE, "'bid' stands there twice"),
}  # fmt: skip


def run(file: Path, out: Path) -> tuple[int, str, list[dict[str, Any]]]:
    done = CliRunner().invoke(app, [
        "eval", "booksum", "--data", str(file), "--replicas", "0", "--out", str(out),
        "--ratios", "0.5", "--max-source-tokens", "400",
    ])
    assert "Traceback" not in done.output
    rows = parquet.read_table(out / "rows.parquet").to_pylist()
    return done.exit_code, done.output, rows


@pytest.fixture
def _fake_engine(monkeypatch):
    settings = work.EngineSettings
    monkeypatch.setattr(work, "EngineSettings", lambda **given: settings(**given, replica=FAKE))


@pytest.mark.usefixtures("_fake_engine")
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_chapter_is_one_error_row(kind: str, tmp_path: Path) -> None:
    record, failure, reason = BAD[kind]
    code, said, rows = run(chapters(tmp_path, record), tmp_path / "out")
    assert code == 1
    (bad,) = [row for row in rows if row["status"] == "failed"]
    assert bad["failure"] == failure
    assert reason in bad["reason"]
    assert "3 in all, 1 failed" in said
    assert sum(row["status"] == "ok" for row in rows) == 2
    held = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (held["rows"], held["failed"]) == (3, 1)


@pytest.mark.usefixtures("_fake_engine")
def test_names_that_no_encoding_has_do_not_stop_a_run(tmp_path: Path) -> None:
    record = {**GOOD, "chapter": "text", "book_id": "\ud83d", "chapter_path": "\ud83d/\ud83d.txt"}
    code, said, rows = run(chapters(tmp_path, record), tmp_path / "out")
    assert (code, len(rows)) == (0, 3), said


def test_a_chapter_that_template_or_tokenizer_refuse_is_one_error_row(tmp_path, monkeypatch):
    real = local_engine.text_ids

    def refusing(tokenizer: Any, text: str, **how: Any) -> list[int]:
        if "odd" in text:
            monkeypatch.setattr(tokenizer, "encode", lambda *a, **b: 1 / 0, raising=False)
        try:
            return real(tokenizer, text, **how)
        finally:
            monkeypatch.undo()
            monkeypatch.setattr(local_engine, "text_ids", refusing)

    monkeypatch.setattr(local_engine, "text_ids", refusing)
    file = chapters(tmp_path, {**GOOD, "chapter": "odd"})
    task = BookSumTask(str(file), None, (0.5,), str(ensure_model()))
    first, odd, last = task.units()
    assert (first.failure, odd.failure, last.failure) == ("", UNUSABLE, "")
    assert odd.reason == "the tokenizer refuses the text: division by zero"


def asked(held: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = held["videos"][0]["clips"][0]["annotations"][0]["language_queries"][0]
    return first


QUERIES: dict[str, tuple[Any, str]] = {
    "half a pair": (lambda h: asked(h).update(query="cut \ud83d"), "half of a surrogate pair"),
    "no word": (lambda h: asked(h).update(query="?!"), "has no word in 'query'"),
    "a number": (lambda h: asked(h).update(query=3), "has a int as 'query'"),
    "no window": (lambda h: asked(h).update(clip_start_sec=None, clip_end_sec=None),
                  "has no window to score with"),
    "a window of text": (lambda h: asked(h).update(clip_start_sec="0"), "not a number of seconds"),
    "a video's name": (lambda h: h["videos"][1].update(video_uid="\ud83d"),
                       "half of a surrogate pair (\\ud83d) at character 1 in 'video_uid'"),
    "a clip's name": (lambda h: h["videos"][1]["clips"][0].update(clip_uid="\ud83d"),
                      "in 'clip_uid', which is no text"),
}  # fmt: skip


@pytest.mark.parametrize("kind", QUERIES)
def test_a_bad_query_is_one_error_row(kind: str, tmp_path: Path) -> None:
    change, reason = QUERIES[kind]
    data = write_nlq(tmp_path, change)
    task = Ego4dTask(str(tmp_path / data.name), str(data.folder), (1.0,), width=3, most_tokens=999)
    units = list(task.units())
    (bad,) = [unit for unit in units if unit.failure]
    assert bad.failure == UNUSABLE
    assert reason in bad.reason
    assert len(units) == 4
    rows = answered(task)
    with Journal(tmp_path / "run", {}) as journal:
        for row in rows:
            journal.add(row)
    assert write(rows, tmp_path).is_file()
    assert len(chance(iter(data))["mIoU"]) >= 3


def test_a_clip_of_ten_times_the_window_is_an_error_row_for_each_query(tmp_path: Path) -> None:
    write_nlq(tmp_path)
    task = Ego4dTask(str(tmp_path / "nlq_val.json"), str(sound_features(tmp_path)), (1.0,), width=3,
                     most_tokens=6)
    assert {unit.failure for unit in task.units()} == {UNUSABLE}
    assert all("at most 6 fit" in unit.reason for unit in task.units())


def test_annotations_with_a_byte_order_mark(tmp_path: Path) -> None:
    write_nlq(tmp_path)
    file = tmp_path / "nlq_val.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(published()).encode())
    task = Ego4dTask(str(file), str(tmp_path / "features"), (1.0,), width=3, most_tokens=999)
    assert len(list(task.units())) == 4


def answered(task: Ego4dTask) -> list[dict[str, Any]]:
    """Rows of a run whose engine finds every window."""
    rows = []
    for unit in task.units():
        if unit.failure:
            rows.append(row_of(Outcome(unit, failure=unit.failure, reason=unit.reason), task))
            continue
        found = {"windows": [unit.facts["window"]], "source_tokens": 9, "kept_tokens": 9}
        rows.append(row_of(Outcome(unit, Answer([], "", None, found, 0.0, 1.0)), task))
    return rows


def test_windows_without_length_count_and_are_named(tmp_path: Path) -> None:
    def more(held: dict[str, Any]) -> None:
        asked(held).update(query(3.0, 3.01, 0.0))

    data = write_nlq(tmp_path, more)
    task = Ego4dTask(str(tmp_path / data.name), str(data.folder), (1.0, 0.5), width=3,
                     most_tokens=999)
    rows = answered(task)
    assert {row["R@1 IoU>0.5"] for row in rows} == {row["mIoU"] for row in rows} == {1.0}
    run_of = {"task": task.name, "command": ""}
    summary = report.summarise(rows, task.metrics, task.facts(), run_of, task.flags)
    flagged = summary["flagged"]["zero_length"]
    assert flagged["rows"] == 6
    assert {"v0/c0/c0-a/0", "v0/c0/c0-a/1"} <= set(flagged["row_ids"])
    assert all(part["metrics"]["R@1 IoU>0.5"]["mean"] == 1.0 for part in summary["ratios"])
    assert summary["task"]["left out"] == {EMPTY_QUERY: 2}
    said = report.markdown(summary, [])
    assert "6 of the rows are counted though flagged as zero_length: v0/c0/c0-a/0" in said
    lines = comparison(rows, chance(iter(data)))
    assert [line.get("zero_length") for line in lines] == [2, 2, 2, None]
    assert "2 of the queries have a window shorter than a frame" in markdown(lines)


def test_arguments_of_the_engine_go_to_their_fields_or_on_to_vllm() -> None:
    given = {"block_size": 16, "tensor_parallel_size": 2, "enforce_eager": False, "seed": 3}
    settings = EngineSettings("m", extra={"max_logprobs": 5}).with_engine_arguments(given)
    assert (settings.block_size, settings.tensor_parallel, settings.eager) == (16, 2, False)
    assert settings.extra == {"max_logprobs": 5, "seed": 3}
    assert settings.engine_kwargs() == EngineSettings("m").engine_kwargs() | given | {
        "max_logprobs": 5
    }
    odd = EngineSettings("m", extra={"compilation_config": object()})
    assert json.dumps(odd.deciding())


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Settings of the engines that a command would start."""
    seen: list[EngineSettings] = []
    for module in ("booksum", "ego4d"):
        monkeypatch.setattr(
            f"qm_vllm_eval.cli.{module}.carry_out", lambda task, settings, *_: seen.append(settings)
        )
    monkeypatch.setattr("qm_vllm.assets.embedded.ensure_model", lambda: tmp_path)
    make(num_time_bins=8).save_pretrained(tmp_path / "prior")
    return seen


@pytest.mark.parametrize("command", ["booksum", "ego4d-nlq"])
def test_evaluations_take_any_argument_of_the_engine(command, tmp_path, started) -> None:
    own = ("--prior", str(tmp_path / "prior")) if command == "ego4d-nlq" else ()
    call = ["eval", command, "--out", str(tmp_path / "out"), *own]
    done = CliRunner().invoke(app, [*call, "--bloc-size", "16"])
    assert done.exit_code == 1
    assert "did you mean --block-size?" in " ".join(done.output.split())
    assert not started
    done = CliRunner().invoke(app, [*call, "--block-size", "16", "--seed", "7"])
    assert done.exit_code == 0, done.output
    (settings,) = started
    assert (settings.block_size, settings.extra) == (16, {"seed": 7})
