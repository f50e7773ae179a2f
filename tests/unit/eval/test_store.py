"""The store of a study: resumes, refuses, and survives broken files."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest

from qm_vllm_eval.study.meta import code_hash, commit, describe_run, hardware
from qm_vllm_eval.study.store import SCHEMA, Store, StoreError
from tests.unit.eval.study_rows import failed, row, study

SETTINGS = {"model": "small", "dtype": "float32", "modes": ("blind",), "versions": {"qm": "0.2"}}


def parts(store: Store) -> list[Path]:
    return sorted((store.folder / "predictions").iterdir())


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s", SETTINGS)
    store.add(study(samples=2))
    store.add([])
    rows = Store(tmp_path / "s").rows()
    assert list(rows.columns) == SCHEMA.names
    assert len(rows) == 10
    assert len(parts(store)) == 1
    first = rows.iloc[0]
    assert (first["method"], first["ratio"], first["nll"]) == ("none", 0.0, 5.0)
    assert math.isnan(first["match"])
    assert first["query_visible"] in (False,)


def test_resume_keeps_rows_and_knows_what_is_done(tmp_path: Path) -> None:
    Store.open(tmp_path, SETTINGS, {"started": "1"}).add([row("a", 1 / 3, 1.0)])
    again = Store.open(tmp_path, SETTINGS, {"started": "2"})
    again.add([row("b", 0.5, 2.0)])
    name = "needle-1000-False-report-0"
    assert again.done() == {(name, "a", 1 / 3), (name, "b", 0.5)}
    assert [run["started"] for run in again.meta["runs"]] == ["1", "2"]
    again.finish()
    assert parts(again) == []
    assert len(again.done()) == 2
    meta = json.loads((tmp_path / "run_meta.json").read_text())
    assert meta["runs"][1]["ended"].endswith("+00:00")
    assert "ended" not in meta["runs"][0]


def test_another_configuration_is_refused_by_name(tmp_path: Path) -> None:
    Store.open(tmp_path, SETTINGS)
    other = SETTINGS | {"dtype": "bfloat16", "versions": {"qm": "0.3"}, "extra": 1}
    with pytest.raises(StoreError) as raised:
        Store.open(tmp_path, other)
    said = str(raised.value)
    assert "dtype: 'float32' there, 'bfloat16' now" in said
    assert "versions.qm: '0.2' there, '0.3' now" in said
    assert "extra: 'not given' there, 1 now" in said
    assert "model" not in said
    Store.open(tmp_path, SETTINGS)


def test_rows_without_a_description_are_refused(tmp_path: Path) -> None:
    Store.open(tmp_path, SETTINGS).add([row("a", 0.5, 1.0)])
    (tmp_path / "run_meta.json").unlink()
    with pytest.raises(StoreError, match="no run_meta"):
        Store.open(tmp_path, SETTINGS)
    with pytest.raises(StoreError, match="no study"):
        Store(tmp_path)
    (tmp_path / "run_meta.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        Store.open(tmp_path, SETTINGS)


def test_failed_rows_are_retried_and_the_newest_wins(tmp_path: Path) -> None:
    store = Store.open(tmp_path, SETTINGS)
    store.add([
        failed("a", 0.5, 0, "not installed: a package"),
        failed("b", 0.5, 0, "not applicable: needs the question"),
        failed("c", 0.5, 0, "out of memory"),
    ])
    assert {method for _, method, _ in store.done()} == {"b"}
    store.add([row("a", 0.5, 1.5)])
    assert {method for _, method, _ in store.done()} == {"a", "b"}
    rows = store.rows().set_index("method")
    assert rows.loc["a", "status"] == "ok"
    assert rows.loc["a", "nll"] == 1.5
    assert len(rows) == 3


def test_a_truncated_part_is_reported_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store.open(tmp_path, SETTINGS)
    store.add([row("a", 0.5, 1.0)])
    store.add([row("b", 0.5, 1.0)])
    broken = parts(store)[0]
    broken.write_bytes(broken.read_bytes()[:50])
    (tmp_path / "predictions" / ".part-00000009-x.parquet.tmp").write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        assert list(store.rows()["method"]) == ["b"]
    assert store.broken == [broken.name]
    assert broken.name in caplog.text
    store.add([row("a", 0.5, 3.0)])
    assert len(store.done()) == 2
    store.compact()
    assert broken.exists()


def test_compact_merges_and_later_rows_still_win(tmp_path: Path) -> None:
    store = Store.open(tmp_path, SETTINGS)
    for index in range(3):
        store.add(study(samples=1) if index == 0 else [row("quickmerge", 0.5, index)])
    before = store.rows()
    target = store.compact()
    assert target == tmp_path / "predictions.parquet"
    assert parts(store) == []
    assert store.rows().equals(before)
    store.add([row("quickmerge", 0.5, 9.0)])
    rows = Store.open(tmp_path, SETTINGS).rows()
    assert rows.loc[(rows["method"] == "quickmerge") & (rows["ratio"] == 0.5), "nll"].item() == 9.0
    target.write_bytes(b"nothing")
    assert len(store.rows()) == 1
    store.compact()
    assert len(list(tmp_path.glob("predictions.parquet.*.broken"))) == 1
    assert len(store.rows()) == 1


def test_a_sample_id_cannot_mean_two_things(tmp_path: Path) -> None:
    Store.open(tmp_path, SETTINGS).add([row("a", 0.5, 1.0)])
    store = Store.open(tmp_path, SETTINGS)
    name = "needle-1000-False-report-0"
    with pytest.raises(StoreError, match="must be unique"):
        store.add([row("a", 0.5, 1.0, sample_id=name, query_visible=True)])


def test_an_empty_store_has_columns_and_no_rows(tmp_path: Path) -> None:
    store = Store.open(tmp_path, SETTINGS)
    assert list(store.rows().columns) == SCHEMA.names
    assert store.done() == set()


def test_description_of_a_run_is_json() -> None:
    run = describe_run(
        {"ratios": (0.5,), "out": Path("x")}, methods={"a": "A sentence."}, peers={"peer": "1"}
    )
    again = json.loads(json.dumps(run))
    assert again["arguments"] == {"ratios": [0.5], "out": "x"}
    assert again["versions"]["peer"] == "1"
    assert again["methods"] == {"a": "A sentence."}
    assert hardware()["cores"] >= 1


def test_code_hash_follows_content_and_names(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    first = code_hash([tmp_path])
    assert first == code_hash([tmp_path])
    (tmp_path / "a.py").write_text("2")
    second = code_hash([tmp_path])
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, code_hash([tmp_path])}) == 3
    assert len(code_hash()) == 16


def test_no_commit_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit(tmp_path) is None
